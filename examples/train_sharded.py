"""Training over several processes to a size: torchrun --nproc-per-node 2 examples/train_sharded.py model.safetensors"""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import diffq_fast

STEPS = 100
dist.init_process_group()  # gloo on the CPU, NCCL on GPUs
torch.manual_seed(0)  # the same weights in each process
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
if torch.cuda.is_available():
    torch.set_default_device(f"cuda:{dist.get_rank() % torch.cuda.device_count()}")
    model.cuda()
fully_shard(model)
quantizer = diffq_fast.DiffQuantizer(model, group_size=8, min_size=0)
optimizer = torch.optim.AdamW(quantizer.parameter_groups(lr=3e-3, bits_lr=0.05))
target = diffq_fast.SizeTarget(quantizer, bits_per_weight=4, total_steps=STEPS)
torch.manual_seed(1 + dist.get_rank())  # other data in each
for _step in range(STEPS):
    data = torch.randn(32, 64)
    loss = nn.functional.mse_loss(model(data), data)
    (loss + target.penalty()).backward()
    optimizer.step()
    target.step()
    optimizer.zero_grad()
if dist.get_rank() == 0:
    print(f"loss {loss.item():.3f}")
diffq_fast.save(quantizer, sys.argv[1])  # by every process; the first one writes
dist.destroy_process_group()
