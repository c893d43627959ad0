"""Fifty-five conditional flows as grouped operations, beside a loop of fifty-five modules.

Peers: own modules (the same couplings without groups, one flow and one context a joint, run in a loop and
summed) and `zuko` (a RealNVP a joint). All have four affine couplings, hidden layers of 64, and see the same. The
table says ours and theirs in ms and the ratio; above 1 ours is faster. A training step is the log-density of a batch and its
gradients. zuko's flows stand in the parent configuration, whose condition is as wide as theirs.
The other configurations show what does not carry over: with a second hidden layer arithmetic weighs more, and
`earlier` must be drawn one joint after the other, so only lean code helps it there.
"""
from statistics import median

import torch
from torch import nn

from timing import clock
from posebook.couplings import Coupling, GroupedLinear
from posebook.flows import Flow
from posebook.joint_flow import ACTIVE, JointFlow, joint_order, visible
from posebook.skeleton import get_skeleton

J, WIDTH, COUPLINGS, BATCHES, DRAWS = 55, 64, 4, (64, 256, 1024, 4096), (1, 64, 10_000)
CASES = {'parent': (0, 1), 'parent, 2 layers': (0, 2), 'ancestors': (WIDTH, 1), 'earlier': (WIDTH, 1)}

class OwnLoop(nn.Module):
    "A flow and a context for each joint, as modules of their own"
    def __init__(self, sees, context_hidden, depth):
        super().__init__()
        self.seen = [(3*row.nonzero()+torch.arange(3)).flatten() for row in sees]
        width = lambda ids: context_hidden or len(ids) or 3
        layers = lambda n: nn.Sequential(GroupedLinear(n, WIDTH), nn.SiLU(), GroupedLinear(WIDTH, WIDTH), nn.SiLU())
        make = lambda ids, k: Coupling(3, ACTIVE[k%4], width(ids), hidden=WIDTH, depth=depth)
        self.contexts = nn.ModuleList(layers(len(ids) or 3) if context_hidden else nn.Identity() for ids in self.seen)
        self.flows = nn.ModuleList(Flow([make(ids, k) for k in range(COUPLINGS)], 3) for ids in self.seen)

    def condition(self, j, x):
        ids = self.seen[j]
        return self.contexts[j](x[:, ids] if len(ids) else x.new_zeros(len(x), 3))

    def log_prob(self, x):
        return sum(f.log_prob(x[:, 3*j:3*j+3], self.condition(j, x)) for j, f in enumerate(self.flows))

    def sample(self, n):
        x = torch.zeros(n, 3*J, device=next(self.parameters()).device)
        for j, f in enumerate(self.flows): x[:, 3*j:3*j+3] = f.sample(n, self.condition(j, x))
        return x

class ZukoLoop(OwnLoop):
    "The same with zuko's flows"
    def __init__(self, sees, context_hidden, depth):
        super().__init__(sees, context_hidden, depth)
        from zuko.flows import RealNVP
        self.flows = nn.ModuleList(RealNVP(3, 3, transforms=COUPLINGS, hidden_features=(WIDTH,)*depth) for _ in range(J))

    def log_prob(self, x):
        return sum(f(self.condition(j, x)).log_prob(x[:, 3*j:3*j+3]) for j, f in enumerate(self.flows))

    def sample(self, n):
        x = torch.zeros(n, 3*J, device=next(self.parameters()).device)
        for j, f in enumerate(self.flows): x[:, 3*j:3*j+3] = f(self.condition(j, x)).sample()
        return x

def train_step(model, x):
    (-model.log_prob(x).mean()).backward()
    for p in model.parameters(): p.grad = None

def draw(model, n):
    with torch.no_grad(): model.sample(n)

def row(name, job, models, work, gpu):
    "One line: medians of interleaved rounds, and the ratio of each peer to ours"
    times = {k: [] for k in models}
    for _ in range(4):
        for k, m in models.items(): times[k] += clock(lambda: work(m), .35, gpu, most=10)
    ms = {k: median(v) for k, v in times.items()}
    peers = [f'{ms[k]:9.1f}{ms[k]/ms["ours"]:7.2f}' if k in ms else f'{"-":>9}{"-":>7}' for k in ('loop', 'zuko')]
    print(f'{name:18}{job:15}{ms["ours"]:9.1f}{"".join(peers)}', flush=True)

def same(models, x):
    "Both sides start as the identity and compute the same density"
    with torch.no_grad(): a, *rest = [m.log_prob(x) for m in models.values()]
    if not all(torch.allclose(a, b, rtol=1e-4) for b in rest[:1]): raise AssertionError('ours and the loop differ')

def table(device):
    "All lines on one device"
    gpu = device == 'cuda'
    what = torch.cuda.get_device_name() if gpu else f'CPU, {torch.get_num_threads()} thread, CPU time'
    print(f'{J} joints, {COUPLINGS} couplings, hidden {WIDTH}; {what}; ms, medians')
    print(f'{"context":18}{"":15}{"ours":>9}{"loop":>9}{"ratio":>7}{"zuko":>9}{"ratio":>7}')
    order, above = joint_order(torch.arange(J), list(get_skeleton('smplx').parents))
    joint = torch.arange(J).repeat_interleave(3)
    for name, (wide, depth) in CASES.items():
        sees = visible(name.split(',')[0], above)
        models = dict(ours=JointFlow(joint, sees, COUPLINGS, 'affine', WIDTH, depth, wide), loop=OwnLoop(sees, wide, depth))
        same(models, torch.randn(5, 3*J))
        if not wide: models['zuko'] = ZukoLoop(sees, wide, depth)
        models = {k: m.to(device).eval() for k, m in models.items()}
        for B in BATCHES[:1] if depth == 2 else BATCHES:
            x = torch.randn(B, 3*J, device=device)
            row(name, f'train {B}', models, lambda m: train_step(m, x), gpu)
        for n in () if depth == 2 else DRAWS: row(name, f'sample {n}', models, lambda m: draw(m, n), gpu)

def main():
    "Print the table for the CPU, and for a GPU where there is one"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table('cpu')
    if torch.cuda.is_available(): print(), table('cuda')

if __name__ == '__main__': main()
