"Forward kinematics of bare trees: both backends, beside smplx and beside each other"
import subprocess, sys

import pytest, torch
from hypothesis import given, settings, strategies as st
from smplx.lbs import batch_rigid_transform
from posebook import kinematics as kin
from posebook.kinematics import kinematic_chain, tree_depths, use_numba
from posebook.rotations import random_rotations
from posebook.skeleton import forward_kinematics, get_skeleton, list_skeletons, rest_joints

FAST = pytest.mark.skipif(not kin.has_numba(), reason='the extra [fast] is not installed')
BOTH = pytest.mark.parametrize('backend', ['torch', pytest.param('numba', marks=FAST)])

def rotations(*shape, dtype=torch.double, seed=0):
    "Random rotations (*shape, 3, 3)"
    g = torch.Generator().manual_seed(seed)
    return random_rotations(torch.Size(shape).numel(), dtype=dtype, generator=g).view(*shape, 3, 3)

@st.composite
def trees(draw):
    "Parents of a random tree, in a random storage order"
    n = draw(st.integers(1, 12))
    parents = [-1]+[draw(st.integers(0, j-1)) for j in range(1, n)]
    place = draw(st.permutations(range(n)))
    out = [-1]*n
    for j, p in enumerate(parents): out[place[j]] = -1 if p < 0 else place[p]
    return tuple(out)

@FAST
@settings(max_examples=40, deadline=None)
@given(trees(), st.integers(0, 5), st.booleans())
def test_backends_agree_on_any_tree(parents, batch, shared):
    J = len(parents)
    o = torch.randn(*([] if shared else [batch]), J, 3, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    out = []
    for backend in ('torch', 'numba'):
        R, d = rotations(batch, J).requires_grad_(), o.clone().requires_grad_()
        P, G = kinematic_chain(R, d, parents, backend)
        loss = (P.sin()*torch.arange(J*3).view(J, 3)).sum()+(G**3).sum()
        out.append((P, G, *torch.autograd.grad(loss, (R, d))))
    for a, b in zip(*out): assert torch.allclose(a, b, atol=1e-9)

@BOTH
def test_the_definition(backend):
    parents = (2, 2, -1, 0, 1, 4)
    R, o = rotations(7, 6), torch.randn(7, 6, 3, dtype=torch.double)
    P, G = kinematic_chain(R, o, parents, backend)
    for j, p in enumerate(parents):
        if p < 0: assert torch.equal(P[:, j], o[:, j]) and torch.equal(G[:, j], R[:, j])
        else:
            assert torch.allclose(G[:, j], G[:, p] @ R[:, j])
            assert torch.allclose(P[:, j], P[:, p]+(G[:, p] @ o[:, j, :, None])[..., 0])

@BOTH
@pytest.mark.parametrize('batch', [0, 1, 3, 9000])
def test_equals_smplx(backend, batch):
    s, R = get_skeleton('smplx'), rotations(batch, 55, dtype=torch.float32)
    P, G = forward_kinematics(R, s, backend=backend)
    if not batch: return
    T, A = batch_rigid_transform(R, rest_joints(s).expand(batch, 55, 3), torch.tensor(s.parents))
    assert (P-T).abs().max() < 2e-6 and (G-A[..., :3, :3]).abs().max() < 3e-6

@FAST
@pytest.mark.parametrize('batch,threads', [(9000, 1), (9000, 2), (1, 2), (5000, 2)])
@pytest.mark.parametrize('shared', [True, False])
def test_threads_and_blocks(batch, threads, shared):
    "Large batches are cut; nothing is lost at the cuts"
    before = torch.get_num_threads()
    s = get_skeleton('deepmimic')
    o = s.offsets.double() if shared else s.offsets.double()*torch.rand(batch, 1, 1)
    try:
        torch.set_num_threads(threads)
        out = []
        for backend in ('torch', 'numba'):
            R, d = rotations(batch, 15).requires_grad_(), o.clone().requires_grad_()
            P, G = kinematic_chain(R, d, s.parents, backend)
            out.append((P, G, *torch.autograd.grad((P**2).sum()+G.sin().sum(), (R, d))))
        for a, b in zip(*out): assert torch.allclose(a, b, atol=1e-7)
    finally: torch.set_num_threads(before)

@BOTH
def test_gradients_twice(backend):
    parents, g = (-1, 0, 0, 1), torch.Generator().manual_seed(0)
    new = lambda *n: torch.randn(*n, generator=g, dtype=torch.double).requires_grad_()
    f = lambda R, o: kinematic_chain(R, o, parents, backend)
    for o in (new(4, 3), new(2, 4, 3)):
        assert torch.autograd.gradcheck(f, (new(2, 4, 3, 3), o))
        assert torch.autograd.gradgradcheck(f, (new(2, 4, 3, 3), o))

@BOTH
def test_odd_memory(backend):
    "Transposed, expanded and broken inputs, and gradients that are expanded"
    s = get_skeleton('deepmimic')
    R = rotations(15, 4).transpose(0, 1)
    P, _ = forward_kinematics(R, s, backend=backend)
    assert torch.allclose(P, forward_kinematics(R.contiguous(), s, backend='torch')[0])
    one = rotations(15).expand(3, 15, 3, 3).requires_grad_()
    forward_kinematics(one, s, backend=backend)[0].sum().backward()
    bad = rotations(2, 15)
    bad[1, 3] = float('nan')
    P, _ = forward_kinematics(bad, s, backend=backend)
    assert P[0].isfinite().all() and P[1].isnan().any()

@BOTH
def test_inputs_and_gradients_are_left_alone(backend):
    R = rotations(3, 15).requires_grad_()
    P, G = forward_kinematics(R, 'deepmimic', backend=backend)
    gP, gG, kept = torch.ones_like(P), torch.ones_like(G), R.detach().clone()
    torch.autograd.backward((P, G), (gP, gG))
    assert (gP == 1).all() and (gG == 1).all() and torch.equal(R.detach(), kept)

def test_the_first_call_and_the_last_give_the_same_bits():
    "Importing posebook does not import numba; the first pose does, so that nothing depends on what a process did before"
    code = '''
import sys, torch
from posebook.skeleton import forward_kinematics
R = torch.linalg.qr(torch.randn(55, 3, 3))[0]
assert 'numba' not in sys.modules
a = forward_kinematics(R)[0]
print('numba' in sys.modules)
for _ in range(40): b = forward_kinematics(R)[0]
print(torch.equal(a, b))'''
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [str(kin.has_numba()), 'True']

def test_without_numba(monkeypatch):
    "`auto` falls back; by name, the error says which extra is missing"
    kin._kernels.cache_clear()
    monkeypatch.setitem(sys.modules, 'numba', None)
    monkeypatch.setattr(kin, '_ASKED', dict(found=True))
    R = rotations(2, 15)
    P = forward_kinematics(R, 'deepmimic')[0]
    assert torch.equal(P, forward_kinematics(R, 'deepmimic', backend='torch')[0])
    with pytest.raises(ImportError, match=r'posebook\[fast\]'): forward_kinematics(R, 'deepmimic', backend='numba')

def test_choice():
    x = torch.zeros(1)
    assert not use_numba(x, 'torch') and not use_numba(x.half()) and not use_numba(x.to('meta'))
    with pytest.raises(ValueError, match='among auto, torch, numba'): use_numba(x, 'fast')

def test_depths_of_every_skeleton():
    for s in map(get_skeleton, list_skeletons()):
        d = tree_depths(s.parents)
        assert all(d[j] == d[p]+1 for j, p in enumerate(s.parents) if p >= 0)
    with pytest.raises(ValueError, match='circle'): tree_depths((1, 0))
