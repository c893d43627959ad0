"""Rotations against independent values, at the angles where formulas break, in both precisions."""
import itertools, math, warnings

import numpy as np
import pytest, roma, torch
from hypothesis import given, strategies as st
from scipy.spatial.transform import Rotation
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.functional import jacobian

import posebook.rotations as rot
from posebook.rotations import *

PI = math.pi
ANGLES = [0., 1e-30, 1e-8, 1e-4, .5, PI/2, PI-1e-4, PI-1e-8, PI, PI+1e-4, 4., 2*PI-1e-4, 7.]
AXES = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, -1, 0), (1, 1, 0), (1, -2, 3), (-.3, .2, -1e-3)]
DTYPES = [torch.float32, torch.float64]
EPS = {torch.float32: 1.2e-7, torch.float64: 2.3e-16}
CONVENTIONS = [''.join(c) for c in itertools.product('XYZ', repeat=3) if c[1] not in (c[0], c[2])]
CONVERSIONS = {'axis_angle_to_quaternion': (3,), 'axis_angle_to_matrix': (3,),
               'quaternion_to_axis_angle': (4,), 'quaternion_to_matrix': (4,),
               'matrix_to_quaternion': (3, 3), 'matrix_to_axis_angle': (3, 3),
               'rotation_6d_to_matrix': (6,), 'matrix_to_rotation_6d': (3, 3)}
both = pytest.mark.parametrize('dtype', DTYPES, ids=['float32', 'float64'])
every = pytest.mark.parametrize('name', CONVERSIONS)

def gen(seed=0): return torch.Generator().manual_seed(seed)
def axes(dtype):
    a = torch.tensor(AXES, dtype=torch.float64)
    return (a/a.norm(dim=-1, keepdim=True)).to(dtype)
def vectors(dtype, angles=ANGLES):
    "Rotation vectors of all singular angles about all axes, shape (angles, axes, 3)"
    return torch.tensor(angles, dtype=dtype)[:, None, None]*axes(dtype)
def cross(v):
    "The cross-product matrix, written without `hat`"
    e = torch.eye(3, dtype=v.dtype)
    return torch.stack([torch.linalg.cross(v, e[i].expand_as(v)) for i in range(3)], -1)
def exponential(v): return torch.matrix_exp(cross(v.double()))
def inputs(name, n=20, dtype=torch.float64):
    if CONVERSIONS[name]==(3, 3): return random_rotations(n, dtype, generator=gen())
    return torch.randn(n, *CONVERSIONS[name], dtype=dtype, generator=gen())
def rel(a, b): return ((a-b).abs().max()/b.abs().max().clamp_min(1e-300)).item()

# ---- values at the singular angles

@both
def test_axis_angle_to_matrix(dtype):
    v = vectors(dtype)
    assert (axis_angle_to_matrix(v).double()-exponential(v)).abs().max() < 40*EPS[dtype]
    assert torch.equal(axis_angle_to_matrix(v), axis_angle_to_matrix(v, fast=True))

@both
def test_axis_angle_to_quaternion(dtype):
    v = vectors(dtype)
    t = v.double().norm(dim=-1, keepdim=True)
    expected = torch.cat(((t/2).cos(), torch.sinc(t/2/PI)/2*v.double()), -1)
    q = axis_angle_to_quaternion(v).double()
    assert (q-expected).abs().max() < 4*EPS[dtype]
    small = t[..., 0] < 1e-3
    assert rel(q[small][:, 1:]/t[small].clamp_min(1e-40), expected[small][:, 1:]/t[small].clamp_min(1e-40)) < 4*EPS[dtype]

@both
def test_round_trip_by_quaternion(dtype):
    v = vectors(dtype, [a for a in ANGLES if a < 6])
    back = quaternion_to_axis_angle(axis_angle_to_quaternion(v))
    assert ((back-v).norm(dim=-1) <= 8*EPS[dtype]*v.norm(dim=-1)).all()

@both
def test_round_trip_by_matrix(dtype):
    v = vectors(dtype, [a for a in ANGLES if a < PI-1e-7])
    back = matrix_to_axis_angle(axis_angle_to_matrix(v))
    assert ((back-v).norm(dim=-1) <= 10*EPS[dtype]*v.norm(dim=-1)).all()

@both
def test_matrix_to_axis_angle_everywhere(dtype):
    R = exponential(vectors(torch.float64)).to(dtype)
    v = matrix_to_axis_angle(R)
    assert (v.norm(dim=-1) <= PI*(1+4*EPS[dtype])).all()
    assert (axis_angle_to_matrix(v)-R).abs().max() < 20*EPS[dtype]
    near = vectors(torch.float64, [PI-1e-4]).to(dtype)
    assert (matrix_to_axis_angle(axis_angle_to_matrix(near))-near).abs().max() < 20*EPS[dtype]

@both
def test_half_turns_about_26_axes(dtype):
    axis = [a for a in itertools.product((0., 1., -1.), repeat=3) if any(a)]
    axis = torch.nn.functional.normalize(torch.tensor(axis, dtype=dtype), dim=-1)
    R = 2*axis[:, :, None]*axis[:, None, :]-torch.eye(3, dtype=dtype)
    q, v = matrix_to_quaternion(R), matrix_to_axis_angle(R)
    assert ((q[:, 1:]*axis).sum(-1).abs()-1).abs().max() < 10*EPS[dtype]
    assert ((v*axis).sum(-1).abs()-PI).abs().max() < 20*EPS[dtype]

@both
def test_exact_identity_and_zero(dtype):
    eye, o = torch.eye(3, dtype=dtype), torch.zeros(3, dtype=dtype)
    one = torch.tensor([1, 0, 0, 0], dtype=dtype)
    for f, x, y in ((axis_angle_to_matrix, o, eye), (axis_angle_to_quaternion, o, one),
                    (matrix_to_axis_angle, eye, o), (matrix_to_quaternion, eye, one),
                    (quaternion_to_matrix, one, eye), (quaternion_to_matrix, -one, eye),
                    (quaternion_to_axis_angle, one, o), (quaternion_to_axis_angle, -one, o)):
        x = x.clone().requires_grad_()
        assert torch.equal(f(x), y), f.__name__
        assert jacobian(f, x).isfinite().all(), f.__name__

def test_against_scipy():
    R = random_rotations(2000, torch.float64, generator=gen())
    s = Rotation.from_matrix(R.numpy())
    assert np.abs(matrix_to_axis_angle(R).numpy()-s.as_rotvec()).max() < 1e-13
    q = np.roll(s.as_quat(canonical=True), 1, -1)
    assert np.abs(matrix_to_quaternion(R).numpy()-q).max() < 1e-14

@pytest.mark.parametrize('convention', CONVENTIONS)
def test_euler_against_scipy(convention):
    R = random_rotations(500, torch.float64, generator=gen())
    expected = Rotation.from_matrix(R.numpy()).as_euler(convention)
    angles = matrix_to_euler_angles(R, convention)
    assert np.abs(angles.numpy()-expected).max() < 1e-10
    assert (euler_angles_to_matrix(angles, convention)-R).abs().max() < 1e-14
    f = lambda x: matrix_to_euler_angles(x, convention)
    assert gradcheck(f, R[:3].clone().requires_grad_())
    assert gradcheck(lambda x: euler_angles_to_matrix(x, convention), angles[:3].requires_grad_())

@both
@pytest.mark.parametrize('convention', CONVENTIONS)
def test_gimbal_lock(convention, dtype):
    "In lock and next to it the angles still make the matrix, and gradients are finite"
    ends = (0., PI) if convention[0]==convention[2] else (PI/2, -PI/2)
    for middle, off in itertools.product(ends, (0., 1e-8, -1e-8, 1e-4)):
        angles = torch.tensor([.3, middle+off, -.7], dtype=dtype)
        R = euler_angles_to_matrix(angles, convention).requires_grad_()
        back = matrix_to_euler_angles(R, convention)
        assert (euler_angles_to_matrix(back, convention)-R).abs().max() < 20*EPS[dtype]
        assert torch.autograd.grad(back.sum(), R)[0].isfinite().all()

# ---- gradients

@pytest.mark.parametrize('name', [n for n in CONVERSIONS if n!='matrix_to_rotation_6d'])
def test_gradients_numerically(name):
    f, x = getattr(rot, name), inputs(name, 12)
    if x.dim()==3: x = x+.02*torch.randn(x.shape, generator=gen(), dtype=x.dtype)  # no rotation any more
    x = x.requires_grad_()
    assert gradcheck(f, x) and gradgradcheck(f, x)

@both
def test_gradient_of_matrix_at_every_angle(dtype):
    "Against the derivative of the matrix exponential, in float64"
    for v in vectors(dtype).flatten(0, 1):
        J, expected = jacobian(axis_angle_to_matrix, v), jacobian(exponential, v.double())
        assert (J.double()-expected).abs().max() < 40*EPS[dtype], v

@both
def test_gradient_of_quaternion_at_every_angle(dtype):
    "Against the exponential of the 4x4 matrix that multiplies by a pure quaternion"
    def spin(v):
        x, y, z = v.unbind(-1)
        o = torch.zeros_like(x)
        L = torch.stack((o,-x,-y,-z, x,o,-z,y, y,z,o,-x, z,-y,x,o), -1).reshape(4, 4)
        return torch.matrix_exp(L/2)[:, 0]
    for v in vectors(dtype).flatten(0, 1):
        J, expected = jacobian(axis_angle_to_quaternion, v), jacobian(spin, v.double())
        assert (J.double()-expected).abs().max() < 20*EPS[dtype], v

@both
@pytest.mark.parametrize('between', ['quaternion', 'matrix'])
def test_gradient_of_round_trip(dtype, between):
    "There and back has the derivative of the identity, or of the wrap where it wraps"
    there, back = getattr(rot, f'axis_angle_to_{between}'), getattr(rot, f'{between}_to_axis_angle')
    for v in vectors(dtype, [a for a in ANGLES if a < 4.5]).flatten(0, 1):
        J = jacobian(lambda x: back(there(x)), v).double()
        u, t = v.double()/v.double().norm().clamp_min(1e-40), v.double().norm()
        expected = torch.eye(3, dtype=torch.float64)
        if (back(there(v))-v).norm() > 1: # the other side of the ball: v (1 - 2 pi/|v|)
            expected = (1-2*PI/t)*expected + 2*PI/t*u[:, None]*u
        assert (J-expected).abs().max() < 60*EPS[dtype], (v, J, expected)

@both
@every
def test_gradients_are_finite_at_every_angle(name, dtype):
    v = vectors(dtype)
    takes = {(3,): v, (4,): axis_angle_to_quaternion(v), (3, 3): axis_angle_to_matrix(v),
             (6,): matrix_to_rotation_6d(axis_angle_to_matrix(v))}[CONVERSIONS[name]]
    x = takes.clone().requires_grad_()
    y = getattr(rot, name)(x)
    g = torch.randn(y.shape, generator=gen(), dtype=dtype)
    assert y.isfinite().all() and torch.autograd.grad(y, x, g)[0].isfinite().all()

@both
def test_other_gradients_are_finite(dtype):
    v = vectors(dtype)
    R, q = axis_angle_to_matrix(v), axis_angle_to_quaternion(v)
    fs = [(canonical_axis_angle, v), (so3_exp_map, v), (so3_log_map, R), (so3_rotation_angle, R),
          (lambda x: geodesic_distance(x, R.detach()), R), (project_to_so3, R),
          (lambda x: quaternion_distance(x, q.detach()), q), (lambda x: quaternion_distance(x, -q.detach()), q),
          (lambda x: axis_angle_distance(x, v.detach()), v), (lambda x: slerp(x, q.detach(), .3), q),
          (lambda x: slerp(x, q.detach().roll(1, 1), .3), q), (frechet_mean, R)]
    for i, (f, x) in enumerate(fs):
        x = x.detach().clone().requires_grad_()
        y = f(x)
        assert y.isfinite().all() and torch.autograd.grad(y.sum(), x)[0].isfinite().all(), i

def test_step_from_the_identity():
    "A loss on the real part alone reaches the diagonal of the matrix, at the identity too"
    R = torch.eye(3, requires_grad=True)
    (matrix_to_quaternion(R)[0]-.9).square().backward()
    assert (R.grad.diagonal() > .01).all()

def test_gradients_of_distances():
    A, B = (random_rotations(5, torch.float64, generator=gen(s)) for s in (0, 1))
    assert gradcheck(geodesic_distance, (A.requires_grad_(), B.requires_grad_()))
    a, b = matrix_to_axis_angle(A.detach()).requires_grad_(), matrix_to_axis_angle(B.detach()).requires_grad_()
    assert gradcheck(axis_angle_distance, (a, b)) and gradcheck(canonical_axis_angle, 3*a.detach().requires_grad_())
    p, q = axis_angle_to_quaternion(a.detach()).requires_grad_(), axis_angle_to_quaternion(b.detach()).requires_grad_()
    assert gradcheck(slerp, (p, q, torch.rand(5, dtype=torch.float64, generator=gen()).requires_grad_()))

# ---- shapes and errors

@both
@every
@pytest.mark.parametrize('lead', [(), (0,), (1,), (2, 3), (0, 5), (2, 1, 3, 1)], ids=str)
def test_any_leading_shape(name, dtype, lead):
    takes, n = CONVERSIONS[name], math.prod(lead)
    x = inputs(name, n, dtype).reshape(lead+takes).requires_grad_()
    y = getattr(rot, name)(x)
    assert y.shape[:len(lead)]==lead and y.dtype==dtype
    assert torch.autograd.grad(y.sum(), x)[0].shape==x.shape
    if n: assert torch.equal(y.reshape(n, -1)[0], getattr(rot, name)(x.reshape(n, *takes)[0]).flatten())

@pytest.mark.parametrize('lead', [(), (0,), (2, 0, 3), (4, 2)], ids=str)
def test_any_leading_shape_of_the_rest(lead):
    n = math.prod(lead)
    v = torch.randn(*lead, 3, generator=gen())
    R, q = axis_angle_to_matrix(v), axis_angle_to_quaternion(v)
    shapes = {lead: [geodesic_distance(R, R), quaternion_distance(q, q), axis_angle_distance(v, v),
                     so3_rotation_angle(R), so3_relative_angle(R, R)],
              lead+(3,): [canonical_axis_angle(v), so3_log_map(R), hat_inv(hat(v)), quaternion_apply(q, v),
                          matrix_to_euler_angles(R, 'ZYX')],
              lead+(4,): [slerp(q, q, .5), slerp(q, q, torch.rand(lead)), quaternion_multiply(q, q),
                          quaternion_invert(q), standardize_quaternion(q), flip_to_hemisphere(q, q)],
              lead+(3, 3): [so3_exp_map(v), project_to_so3(R), tangent_noise(R, .1, gen()), hat(v),
                            tangent_noise(R, torch.ones(lead)), euler_angles_to_matrix(v, 'XYZ')]}
    for shape, results in shapes.items():
        assert [tuple(r.shape) for r in results]==[shape]*len(results)
    assert random_quaternions(0).shape==(0, 4) and random_rotation().shape==(3, 3) and n>=0

WRONG = [(n, (torch.zeros(5, *s[:-1], s[-1]+1),)) for n, s in CONVERSIONS.items()] + [
    (n, (torch.zeros(*s, dtype=torch.long),)) for n, s in CONVERSIONS.items()] + [
    ('hat', (torch.zeros(5, 4),)), ('hat_inv', (torch.zeros(5, 3),)), ('hat_inv', (torch.ones(3, 3),)),
    ('so3_exp_map', (torch.randn(5, 4),)), ('so3_log_map', (torch.randn(5, 3, 5),)),
    ('so3_log_map', (torch.rand(5, 3, 3)+4,)), ('so3_log_map', (torch.rand(5, 3, 3)-3,)),
    ('so3_rotation_angle', (2*torch.eye(3),)), ('so3_relative_angle', (torch.zeros(3), torch.eye(3))),
    ('quaternion_apply', (torch.zeros(4), torch.zeros(2))), ('quaternion_apply', (torch.zeros(3), torch.zeros(3))),
    ('quaternion_multiply', (torch.zeros(4), torch.zeros(3))), ('quaternion_invert', (torch.zeros(3),)),
    ('standardize_quaternion', (torch.zeros(3),)), ('canonical_axis_angle', (torch.zeros(4),)),
    ('geodesic_distance', (torch.zeros(3), torch.eye(3))), ('quaternion_distance', (torch.zeros(3), torch.zeros(4))),
    ('axis_angle_distance', (torch.zeros(3), torch.zeros(4))), ('slerp', (torch.zeros(4), torch.zeros(3), .5)),
    ('project_to_so3', (torch.zeros(3, 2),)), ('tangent_noise', (torch.zeros(3), .1)),
    ('frechet_mean', (torch.eye(3),)), ('frechet_mean', (torch.zeros(0, 3, 3),)),
    ('frechet_mean', (torch.zeros(2, 3, 3), None, 1)), ('frechet_mean', (torch.zeros(2, 3, 3), torch.ones(3))),
    ('euler_angles_to_matrix', (torch.zeros(4), 'XYZ')), ('euler_angles_to_matrix', (torch.tensor(1.), 'XYZ')),
    *[(f, (x, c)) for f, x in (('euler_angles_to_matrix', torch.zeros(3)), ('matrix_to_euler_angles', torch.eye(3)))
      for c in ('', 'XY', 'XYZX', 'XXY', 'XYY', 'XYW', 'xyz')]]

@pytest.mark.parametrize('name, args', WRONG, ids=[f'{i}-{n}' for i, (n, _) in enumerate(WRONG)])
def test_refuses(name, args):
    with pytest.raises(ValueError, match='expected .* found') as e: getattr(rot, name)(*args)
    assert len(str(e.value)) < 250

# ---- algebra

unit = st.floats(-1, 1, allow_nan=False, width=32)
quaternions = st.tuples(unit, unit, unit, unit).filter(lambda q: sum(x*x for x in q) > 1e-3).map(
    lambda q: torch.nn.functional.normalize(torch.tensor(q, dtype=torch.float64), dim=0))

@given(quaternions, quaternions)
def test_algebra(p, q):
    P, Q = quaternion_to_matrix(p), quaternion_to_matrix(q)
    assert (quaternion_to_matrix(quaternion_raw_multiply(p, q))-P@Q).abs().max() < 1e-14
    assert quaternion_multiply(p, q)[0] >= 0
    assert (quaternion_to_matrix(quaternion_invert(p))-P.mT).abs().max() < 1e-14
    assert (quaternion_apply(p, Q[:, 0])-P@Q[:, 0]).abs().max() < 1e-14
    back = matrix_to_quaternion(P)
    assert min((back-p).abs().max(), (back+p).abs().max()) < 1e-14
    assert (rotation_6d_to_matrix(matrix_to_rotation_6d(P))-P).abs().max() < 1e-14

@given(quaternions, quaternions)
def test_distances_agree(p, q):
    d = geodesic_distance(quaternion_to_matrix(p), quaternion_to_matrix(q))
    assert (quaternion_distance(p, q)-d).abs() < 1e-13 and (quaternion_distance(-p, 2*q)-d).abs() < 1e-13
    v, w = quaternion_to_axis_angle(p), quaternion_to_axis_angle(q)
    assert (axis_angle_distance(v, w)-d).abs() < 1e-13
    assert (axis_angle_distance(v, canonical_axis_angle(v))).abs() < 1e-13

@given(quaternions, quaternions, st.floats(0, 1))
def test_slerp(p, q, t):
    s = slerp(p, q, t)
    whole = quaternion_distance(p, q)
    assert (s.norm()-1).abs() < 1e-14 and (quaternion_distance(p, s)-t*whole).abs() < 1e-7
    assert (quaternion_distance(s, q)-(1-t)*whole).abs() < 1e-7

@both
def test_distance_keeps_small_and_large_angles(dtype):
    v = vectors(dtype, [1e-4, 1e-8, PI-1e-4])
    d = axis_angle_distance(v, torch.zeros_like(v)).double()
    assert ((d/v.double().norm(dim=-1)-1).abs() < 8*EPS[dtype]).all()
    R = axis_angle_to_matrix(v)
    g = geodesic_distance(R, torch.eye(3, dtype=dtype)).double()
    assert (g-v.double().norm(dim=-1)).abs().max() < 8*EPS[dtype]
    assert (so3_relative_angle(R, R)).abs().max() < 8*EPS[dtype]

def test_relative_angle_and_its_cosine():
    A, B = (random_rotations(100, torch.float64, generator=gen(s)) for s in (0, 1))
    cosine = so3_relative_angle(A, B, cos_angle=True)
    assert (so3_relative_angle(A, B).cos()-cosine).abs().max() < 1e-14
    assert (so3_rotation_angle(A@B.mT)-geodesic_distance(B.mT, A.mT)).abs().max() < 1e-14

@both
def test_canonical(dtype):
    v = torch.linspace(-20, 20, 401, dtype=dtype)[:, None]*axes(dtype)[-2]
    w = canonical_axis_angle(v)
    assert (w.norm(dim=-1) <= PI*(1+4*EPS[dtype])).all()
    assert (axis_angle_to_matrix(w).double()-exponential(v)).abs().max() < 100*EPS[dtype]
    assert torch.equal(canonical_axis_angle(w), w)

def test_hemisphere():
    q = torch.tensor([[-.5, .5, .5, .5], [0., -1, 0, 0], [.5, .5, .5, .5]])
    assert torch.equal(standardize_quaternion(q)[:, 0], torch.tensor([.5, 0, .5]))
    assert torch.equal(flip_to_hemisphere(q), standardize_quaternion(q))
    assert ((flip_to_hemisphere(q, q[1])*q[1]).sum(-1) >= 0).all()

# ---- Procrustes, means, noise, randomness

@both
def test_project(dtype):
    M = torch.randn(300, 3, 3, generator=gen(), dtype=dtype)
    R = project_to_so3(M)
    assert (torch.linalg.det(R)-1).abs().max() < 20*EPS[dtype]
    assert (R@R.mT-torch.eye(3, dtype=dtype)).abs().max() < 20*EPS[dtype]
    assert (R.double()-roma.special_procrustes(M.double())).abs().max() < 1e4*EPS[dtype]

@both
def test_project_where_it_is_not_unique(dtype):
    e = torch.eye(3, dtype=dtype)
    bad = torch.stack((0*e, e, -e, torch.diag(e.new_tensor([1, 1, -1])), torch.diag(e.new_tensor([1, 0, 0])),
                       torch.ones_like(e), torch.diag(e.new_tensor([2, 1, -1])))).requires_grad_()
    R = project_to_so3(bad)
    g, = torch.autograd.grad((R*torch.randn(R.shape, generator=gen(), dtype=dtype)).sum(), bad)
    assert (torch.linalg.det(R)-1).abs().max() < 20*EPS[dtype] and g.isfinite().all()

def test_mean_of_turns_about_one_axis_is_their_mean():
    t = torch.tensor([3., 3.2, 3.7, -3.1+2*PI], dtype=torch.float64)
    w = torch.tensor([1., 2, 1, 4], dtype=torch.float64)
    u = axes(torch.float64)[5]
    R = axis_angle_to_matrix(t[:, None]*u)
    for weights, mean in ((None, t.mean()), (w, (w*t).sum()/w.sum())):
        assert (frechet_mean(R, weights)-axis_angle_to_matrix(mean*u)).abs().max() < 1e-13
    twice = torch.stack((R, R.mT), 1)
    m = frechet_mean(twice, w)
    assert m.shape==(2, 3, 3) and (m[0]-m[1].mT).abs().max() < 1e-13
    assert (frechet_mean(twice.transpose(0, 1), w, dim=-1)-m).abs().max() < 1e-14
    assert frechet_mean(torch.zeros(4, 0, 3, 3)).shape==(0, 3, 3)

@given(st.integers(0, 1000))
def test_mean_is_equivariant_and_stationary(seed):
    g = gen(seed)
    C = random_rotations(1, torch.float64, generator=g)
    R = C@axis_angle_to_matrix(.6*torch.randn(8, 3, generator=g, dtype=torch.float64))
    m = frechet_mean(R)
    assert matrix_to_axis_angle(m.mT@R).mean(0).abs().max() < 1e-12
    assert (frechet_mean(C.mT@R)-C[0].mT@m).abs().max() < 1e-12

def test_noise():
    R = random_rotations(50_000, torch.float64, generator=gen())
    sigma = torch.linspace(.01, .2, 50_000, dtype=torch.float64)
    noise = matrix_to_axis_angle(R.mT@tangent_noise(R, sigma, gen(1)))/sigma[:, None]
    assert noise.mean(0).abs().max() < .02 and (noise.T.cov()-torch.eye(3)).abs().max() < .03
    assert torch.equal(tangent_noise(R, .1, gen(2)), tangent_noise(R, .1, gen(2)))

def test_random_rotations_are_uniform():
    "Octants of the image of an axis, also after a fixed turn: chi-square under its 99.9 % point"
    base, R = random_rotation(generator=gen(5)), random_rotations(8000, generator=gen(6))
    for M in (R, base@R, R@base):
        octant = (M[:, 0]>0).long()@torch.tensor([1, 2, 4])
        counts = torch.bincount(octant, minlength=8)
        assert ((counts-1000)**2/1000).sum() < 24.3
    assert torch.equal(random_quaternions(9, generator=gen()), random_quaternions(9, generator=gen()))
    assert random_rotations(2, torch.float64, 'cpu').dtype==torch.float64
    assert random_quaternions(100)[:, 0].min() >= 0

def test_global_randomness_is_left_alone():
    state = torch.get_rng_state()
    random_rotations(5, generator=gen()), tangent_noise(torch.eye(3), .1, gen())
    assert torch.equal(state, torch.get_rng_state())

# ---- the engine

@every
def test_pieces_give_the_same_values(name):
    "An array of several pieces, and what autograd takes in one go"
    n = 2*131072*torch.get_num_threads()+77
    f, x = getattr(rot, name), inputs(name, n, torch.float32)
    y = f(x)
    for part in (slice(-100, None), slice(131000, 131100)):
        assert torch.allclose(y[part], f(x[part]), rtol=0, atol=2e-6)
    xr = x.clone().requires_grad_()
    g = torch.ones_like(y)
    whole, = torch.autograd.grad(f(xr), xr, g)
    part = x[-100:].clone().requires_grad_()
    assert torch.allclose(whole[-100:], torch.autograd.grad(f(part), part, g[-100:])[0], rtol=0, atol=1e-6)

@every
def test_strided_input(name):
    x = inputs(name, 12)
    wide = torch.stack((x, x), -1).reshape(*x.shape[:-1], -1)[..., ::2]
    assert torch.equal(getattr(rot, name)(wide), getattr(rot, name)(x))

@every
def test_torch_func(name):
    f, x = getattr(rot, name), inputs(name, 6)
    assert torch.allclose(torch.func.vmap(f)(x), f(x), rtol=0, atol=1e-15)
    J = torch.func.vmap(torch.func.jacrev(f))(x)
    assert torch.allclose(J[0], jacobian(f, x[0]), rtol=0, atol=1e-14)

def test_scripts():
    "As the functions of pytorch3d do"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for name in [*CONVERSIONS, 'quaternion_multiply', 'quaternion_invert', 'quaternion_apply',
                     'standardize_quaternion', 'matrix_to_euler_angles', 'euler_angles_to_matrix']:
            torch.jit.script(getattr(rot, name))
        v = torch.randn(5, 3, generator=gen())
        assert torch.equal(torch.jit.script(axis_angle_to_matrix)(v), axis_angle_to_matrix(v))

def test_compiled():
    "Every formula is compiled by itself, once, and the results are the same"
    graphs = []
    def backend(graph, example): # needs no C++ compiler
        graphs.append(graph)
        return graph.forward
    fast = compile_rotations(backend=backend)
    assert set(vars(fast))==set(CONVERSIONS)-{'matrix_to_rotation_6d'} and not graphs
    for i, (name, f) in enumerate(vars(fast).items()):
        x = inputs(name, 6).requires_grad_()
        y, expected = f(x), getattr(rot, name)(x)
        assert torch.allclose(y, expected, rtol=0, atol=1e-15) and len(graphs)==2*i+1
        pair = [torch.autograd.grad(out.sum(), x)[0] for out in (y, expected)]
        assert torch.allclose(*pair, rtol=0, atol=1e-14) and len(graphs)==2*i+2
    with pytest.raises(ValueError, match='expected .* found'): fast.axis_angle_to_matrix(torch.zeros(4))

def test_inside_another_compiled_function():
    "Nothing in a conversion breaks the graph, and its closed-form gradient is kept"
    def loss(v): return axis_angle_to_matrix(v)[..., 0].sum()+matrix_to_axis_angle(axis_angle_to_matrix(v)).sum()
    v = torch.cat((torch.zeros(1, 3), torch.randn(4, 3, generator=gen()))).requires_grad_()
    g, expected = (torch.autograd.grad(f(v), v)[0] for f in (torch.compile(loss, backend='eager', fullgraph=True), loss))
    assert torch.allclose(g, expected, rtol=0, atol=1e-6) and g.isfinite().all()
