"""What diffq and Demucs store: bit planes, the entries of a state, and the files that hold them.

Read without believing, importing or running anything that a file names. The quantizers export through this room.
"""
