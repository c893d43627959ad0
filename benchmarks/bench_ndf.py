"""One step of projection by a distance field: value and slope of a batch of poses.

Peer: the published structure (a Python loop over the joints of the encoder, a dense head, the slope by autograd) with the
same weights. Ours computes the same numbers without autograd; `light` is the smaller network of posebook's own
configuration, with weights of its own. The table says ms and how many times faster than the peer each is.

A second table trains both networks on the same labelled poses for the same number of epochs, and says how wrong they are
on other recordings: of the embedded clips, or of the mocap at POSEBOOK_DATA.
"""
import os
from statistics import median
from time import process_time

import torch
from torch import nn

from timing import clock
from posebook.ndf_data import DistanceData
from posebook.distance_field import PUBLISHED, DistanceField, modelled_parents, official_names
from posebook.pose_ndf import PoseNDF
from posebook.rotations import random_quaternions

BATCHES = (1, 64, 1000, 20_000)

class Loop(nn.Module):
    "The published structure: one small network after the other"
    def __init__(self, parents):
        super().__init__()
        act, sizes = lambda: nn.Softplus(beta=100), [126, *PUBLISHED['widths'], 1]
        self.parents = parents
        self.bones = nn.ModuleList(nn.Sequential(nn.Linear(4 if p < 0 else 10, 10), act(), nn.Linear(10, 6), act()) for p in parents)
        self.head = nn.Sequential(*[m for a, b in zip(sizes, sizes[1:]) for m in (nn.Linear(a, b), act())])

    def take(self, field):
        "The weights of a `DistanceField`"
        for name, w in official_names(field).items():
            part, _, rest = name.partition('.')
            if part == 'enc': target = self.bones.get_parameter(rest.removeprefix('net.').replace('.net.', '.'))
            else: target = self.head.get_parameter(f'{2*int(rest[3])}.{rest[5:]}')
            with torch.no_grad(): target.copy_(w)
        return self

    def forward(self, q):
        features = []
        for j, (bone, p) in enumerate(zip(self.bones, self.parents)):
            features.append(bone(q[:, j] if p < 0 else torch.cat([q[:, j], features[p]], -1)))
        return self.head(torch.cat(features, -1))[:, 0]

    def step(self, q):
        "Value, and slope by autograd"
        q = q.clone().requires_grad_()
        d = self(q)
        return d.detach(), torch.autograd.grad(d.sum(), q)[0]

def row(tree, B, device):
    "One line: medians of interleaved rounds"
    parents, gpu = modelled_parents(tree=tree), device == 'cuda'
    field = DistanceField(21, parents, **PUBLISHED).to(device)
    peer, light = Loop(parents).take(field).to(device), PoseNDF()
    light._keep_all(torch.zeros(63), torch.ones(63))
    light, q = light.field.to(device), random_quaternions(21*B).view(B, 21, 4).to(device)
    if not torch.allclose(peer.step(q)[0], field.distance_and_gradient(q)[0], atol=1e-4): raise AssertionError('not the same')
    jobs = dict(published=lambda: peer.step(q), ours=lambda: field.distance_and_gradient(q), light=lambda: light.distance_and_gradient(q))
    times = {k: [] for k in jobs}
    for _ in range(4):
        for k, job in jobs.items(): times[k] += clock(job, .3, gpu)
    ms = {k: median(v) for k, v in times.items()}
    rest = ''.join(f'{ms[k]:9.2f}{ms["published"]/ms[k]:7.2f}' for k in ('ours', 'light'))
    print(f'{tree:10}{B:8}{ms["published"]:11.2f}{rest}', flush=True)

def table(device):
    "All lines on one device"
    what = torch.cuda.get_device_name() if device == 'cuda' else f'CPU, {torch.get_num_threads()} thread, CPU time'
    print(f'distance and slope, {what}; ms, medians; ratio to the published structure')
    print(f'{"tree":10}{"batch":>8}{"published":>11}{"ours":>9}{"ratio":>7}{"light":>9}{"ratio":>7}')
    for B in BATCHES: row('correct', B, device)
    row('legacy', 1, device)

def accuracy(samples=30_000, epochs=8):
    "Both networks, taught the same: error out to 1 rad, correlation, distance of real poses; seconds of training"
    source = os.environ.get('POSEBOOK_DATA')
    data = DistanceData(paths=source and [f'{source}/cmu'], samples=samples, mirror=True, fractions=(.8, 0, .2))
    train, test = data.labels()['train'], data.labels()['test']
    q, true = torch.tensor(test.quaternions), torch.tensor(test.distance[:, 0])
    print(f'\n{len(train)} labelled poses of {"real mocap" if source else "the embedded clips"}, {epochs} epochs each; held-out recordings')
    print(f'{"network":12}{"parameters":>11}{"MAE (rad)":>11}{"correlation":>13}{"real poses":>12}{"seconds":>9}')
    both = dict(published=PoseNDF(tree='correct', **PUBLISHED, pointer=False, mined=0., eikonal_weight=0.),
                light=PoseNDF(mined=0., eikonal_weight=0.))
    clean = torch.tensor(data.part('train').poses)
    for name, prior in both.items():
        start = process_time()
        prior.fit(clean, samples=samples, max_epochs=epochs, batch_size=256)
        seconds = process_time()-start
        with torch.no_grad(): found, real = prior.field(q), prior.field(torch.tensor(test.clean)).mean()
        near = true <= 1
        print(f'{name:12}{prior.n_parameters:11,}{(found-true)[near].abs().mean():11.4f}'
              f'{torch.corrcoef(torch.stack([found, true]))[0, 1]:13.4f}{real:12.3f}{seconds:9.0f}', flush=True)

def main():
    "Print the table for the CPU, and for a GPU where there is one"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table('cpu')
    accuracy()
    if torch.cuda.is_available(): print(), table('cuda')

if __name__ == '__main__': main()
