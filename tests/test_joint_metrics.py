"""`posebook.joint_metrics` against plain loops over numbers, and the published definitions on fixed inputs"""
import math
import numpy as np, pytest, torch
from scipy.spatial import procrustes
from posebook.joint_metrics import (THRESHOLDS, FrameErrors, acceleration_error, auc, bone_consistency, bone_lengths, bone_symmetry,
                                    difference_error, from_pelvis, joint_errors, limb_variance, mpjve, n_mpjpe, part_errors, pck,
                                    pck_groups, relative_bone_deviation, relative_bones, rescale, within_clips)
from posebook.metrics import bootstrap_ci, mpjpe, pa_mpjpe
from posebook.rotations import axis_angle_to_matrix
from posebook.skeleton import get_skeleton

H36M = get_skeleton('h36m17')
# Human3.6M's proportions as ElePose quotes them, in the order of the 16 bones
PROPORTIONS = [.5181, 1.7371, 1.7229, .5181, 1.7371, 1.7229, .9209, .9879, .4481, .4450, .5746, 1.0812, .9652, .5746, 1.0812, .9652]

def people(n=20, joints=17, seed=0, scale=.4):
    "Positions (n, joints, 3) that spread as people do, metres"
    return scale*torch.randn(n, joints, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

@pytest.fixture
def pair(): return people()+.1*people(seed=1)/.4, people()

def turned(degrees, axis=(0, 1, 0)):
    v = torch.tensor(axis, dtype=torch.float64)
    return axis_angle_to_matrix(v/v.norm()*math.radians(degrees))


# ---- loops that follow the words of the definitions

def test_mpjpe_by_a_loop(pair):
    p, g = (x.numpy() for x in pair)
    for i in range(len(p)):
        e = [math.dist(p[i, j]-p[i, 0], g[i, j]-g[i, 0]) for j in range(17)]
        assert joint_errors(*pair)[i].tolist() == pytest.approx(e)
        assert mpjpe(*pair, root=0)[i].item() == pytest.approx(sum(e)/17)

@pytest.mark.parametrize('method', ['least_squares', 'norm_ratio'])
def test_n_mpjpe_by_a_loop(pair, method):
    p, g = (x.numpy() for x in pair)
    for i in range(len(p)):
        a, b = (p[i]-p[i, :1]).ravel(), (g[i]-g[i, :1]).ravel()
        s = a@b/(a@a) if method == 'least_squares' else np.linalg.norm(b)/np.linalg.norm(a)
        want = np.linalg.norm((s*a-b).reshape(17, 3), axis=1).mean()
        assert n_mpjpe(*pair, method=method)[i].item() == pytest.approx(want)

def test_least_squares_is_the_least(pair):
    p, g = (x-x[:, :1] for x in pair)
    best = (rescale(p, g)-g).square().sum((1, 2))
    for s in (.8, .95, 1., 1.05, 1.3): assert (best <= (s*rescale(p, g)-g).square().sum((1, 2))+1e-12).all()
    sizes = rescale(p, g, method='norm_ratio').norm(dim=(1, 2))
    assert torch.allclose(sizes, g.norm(dim=(1, 2)))

def test_both_scales_on_what_says_nothing():
    "The two are not interchangeable: on noise, least squares shrinks and the ratio does not"
    a, b = people(2000, seed=2), people(2000, seed=3)
    ls, nr = (n_mpjpe(a, b, method=m).mean().item() for m in ('least_squares', 'norm_ratio'))
    assert 1.3 < nr/ls < 1.6

def test_velocity_and_acceleration_by_loops(pair):
    p, g = (x.numpy() for x in pair)
    clip = [0]*7+[3]*1+[2]*12
    v, a = [], []
    rel = lambda x, t, j: x[t, j]-x[t, 0]
    for t in range(1, 20):
        if clip[t] != clip[t-1]: continue
        v.append(np.mean([math.dist(rel(p, t, j)-rel(p, t-1, j), rel(g, t, j)-rel(g, t-1, j)) for j in range(17)]))
        if t < 2 or clip[t-2] != clip[t]: continue
        second = lambda x, j: rel(x, t, j)-2*rel(x, t-1, j)+rel(x, t-2, j)
        a.append(np.mean([math.dist(second(p, j), second(g, j)) for j in range(17)]))
    assert mpjve(*pair, clip).tolist() == pytest.approx(v) and len(v) == 17
    assert acceleration_error(*pair, clip).tolist() == pytest.approx(a) and len(a) == 15

def test_pck_and_auc_by_loops():
    p, g = people(seed=5)+.15*people(seed=6), people(seed=5)
    ids = [0, 1, 2, 5, 3, 6, 4, 7, 8, 11, 9, 12, 10, 13]
    assert [j for group in pck_groups('mpi_inf_3dhp17').values() for j in group] == ids
    right, area = [], []
    for i in range(len(p)):
        e = [1000*math.dist(p[i, j]-p[i, 14], g[i, j]-g[i, 14]) for j in ids]
        right.append(100*sum(x < 150 for x in e)/14)
        area.append(sum(100*sum(x < t for x in e)/14 for t in range(0, 151, 5))/31)
    assert pck(p, g, layout='mpi_inf_3dhp17').tolist() == pytest.approx(right)
    assert auc(p, g, layout='mpi_inf_3dhp17').tolist() == pytest.approx(area)
    assert len(THRESHOLDS) == 31 and THRESHOLDS[0] == 0 and THRESHOLDS[-1] == 150 and 20 < np.mean(right) < 99

def test_bones_by_loops():
    x = people(12, seed=7)
    l = np.array([[math.dist(x[t, a], x[t, b]) for a, b in H36M.bones] for t in range(12)])
    assert bone_lengths(x).numpy() == pytest.approx(l)
    assert bone_consistency(x).numpy() == pytest.approx(100*l.std(0)/l.mean(0))
    assert limb_variance(x).item() == pytest.approx(l.var(0, ddof=1).mean())
    sides = [(4, 1), (5, 2), (6, 3), (11, 14), (12, 15), (13, 16)]            # joints at the ends, left and right
    at = {b: i for i, (_, b) in enumerate(H36M.bones)}
    want = np.mean([np.abs(l[:, at[a]]-l[:, at[b]]) for a, b in sides], 0)
    assert bone_symmetry(x).numpy() == pytest.approx(want)
    r = l/l.mean(1, keepdims=True)
    assert relative_bone_deviation(x, PROPORTIONS).numpy() == pytest.approx(((r-PROPORTIONS)**2).sum(1))
    assert relative_bones(x).numpy() == pytest.approx(r)

def test_bones_of_a_batch_are_those_of_each_clip():
    x = people(24, seed=8).view(2, 12, 17, 3)
    for f in (bone_consistency, limb_variance):
        assert torch.allclose(f(x), torch.stack([f(c) for c in x]))

def test_other_layouts_have_the_same_six_pairs():
    for name in ('h36m17', 'mpi_inf_3dhp17', 'mpii17', 'body22', 'coco17'):
        s = get_skeleton(name)
        x = people(3, len(s), seed=9)
        shin, down = s.index('left_ankle'), x[:, s.index('left_ankle')]-x[:, s.index('left_knee')]
        longer = x.clone()
        ids = [shin, *(j for j in range(len(s)) if s.parents[j] == shin)]
        longer[:, ids] += 9*down[:, None]
        assert torch.allclose(bone_symmetry(longer, s)-bone_symmetry(x, s),
            (10*down.norm(dim=-1)-bone_lengths(x, s)[:, [b for _, b in s.bones].index(s.index('right_ankle'))]).abs()/6
            - (down.norm(dim=-1)-bone_lengths(x, s)[:, [b for _, b in s.bones].index(s.index('right_ankle'))]).abs()/6)

def test_parts_by_a_loop():
    p, g = people(4, 133, seed=10), people(4, 133, seed=11)
    e = part_errors(p, g)
    for i in range(4):
        d = (p[i]-g[i]).numpy()
        d = d-(d[11]+d[12])/2
        size = lambda x: np.linalg.norm(x, axis=-1).mean()
        assert e['whole body'][i].item() == pytest.approx(size(d))
        assert e['body'][i].item() == pytest.approx(size(d[:23]))
        assert e['face'][i].item() == pytest.approx(size(d[23:91]))
        assert e['hands'][i].item() == pytest.approx(size(d[91:]))
        assert e['face from nose'][i].item() == pytest.approx(size(d[23:91]-d[0]))
        hands = (size(d[91:112]-d[91])+size(d[112:]-d[112]))/2
        assert e['hands from wrist'][i].item() == pytest.approx(hands)


# ---- fixed inputs: mirrored, turned, scaled

def test_a_mirrored_pose():
    g = people(50)
    p = g*torch.tensor([1, 1, -1])
    assert pa_mpjpe(p, g).min() > .1 and pa_mpjpe(p, g, reflection=True).max() < 1e-9
    noisy = p+.05*people(50, seed=1)
    assert pa_mpjpe(noisy, g).mean() > 3*pa_mpjpe(noisy, g, reflection=True).mean()
    unmirrored = noisy*torch.tensor([1, 1, -1])
    assert torch.allclose(pa_mpjpe(noisy, g, reflection=True), pa_mpjpe(unmirrored, g, reflection=True), atol=1e-9)

@pytest.mark.parametrize('degrees', [10, 90, 179.9])
def test_a_turned_pose(degrees):
    g = people(50)
    for axis in ((0, 1, 0), (1, 0, 0), (1, 2, 3)):
        p = g@turned(degrees, axis).mT
        assert pa_mpjpe(p, g).max() < 1e-9
        assert n_mpjpe(p, g).min() > .02 and mpjpe(p, g, root=0).min() > .02

def test_a_scaled_pose():
    g = people(50)
    for s in (.3, 1., 4.):
        assert pa_mpjpe(s*g+1, g).max() < 1e-9
        for m in ('least_squares', 'norm_ratio'): assert n_mpjpe(s*g+1, g, method=m).max() < 1e-9

def test_alignment_as_scipy_has_it(pair):
    "scipy reflects where that is better, and divides both by the size of the truth"
    for p, g in zip(*pair):
        size = (g-g.mean(0)).norm()
        a, b, _ = procrustes(g.numpy(), p.numpy())
        want = size*np.linalg.norm(a-b, axis=1).mean()
        assert pa_mpjpe(p, g, reflection=True).item() == pytest.approx(want.item())


# ---- origin, units, wrong input

def test_the_pelvis_of_every_layout():
    for name, joint in dict(h36m17='pelvis', mpi_inf_3dhp17='pelvis', body25='mid_hip', halpe26='hip', body22='pelvis').items():
        s = get_skeleton(name)
        x = people(2, len(s))
        assert torch.equal(from_pelvis(x, s), x-x[:, s.index(joint)][:, None])
    x = people(2, 133)
    assert torch.allclose(from_pelvis(x, 'coco_wholebody133'), x-((x[:, 11]+x[:, 12])/2)[:, None])

def test_single_poses_batches_and_numpy(pair):
    p, g = pair
    for f in (n_mpjpe, pck, auc):
        assert f(p.view(4, 5, 17, 3), g.view(4, 5, 17, 3)).shape == (4, 5)
        assert torch.allclose(f(p[3], g[3]), f(p, g)[3])
        assert torch.allclose(f(p.numpy(), g.numpy()), f(p, g))

def test_float32_is_close_to_float64(pair):
    p, g = pair
    for f in (n_mpjpe, mpjve, acceleration_error): assert torch.allclose(f(p.float(), g.float()).double(), f(p, g), atol=1e-6)
    assert n_mpjpe(p.float(), g.float()).dtype == torch.float32

@pytest.mark.parametrize('scale', [1000, .1])
def test_wrong_units_are_refused(scale):
    with pytest.raises(ValueError, match='spread'): pck(scale*people(), scale*people())

@pytest.mark.parametrize('unit, scale', [('m', 1), ('cm', 100), ('mm', 1000)])
def test_units(unit, scale, pair):
    p, g = pair
    assert torch.allclose(pck(scale*p, scale*g, unit=unit), pck(p, g))
    assert torch.allclose(auc(scale*p, scale*g, unit=unit), auc(p, g))

@pytest.mark.parametrize('call, text', [
    (lambda x: pck(x, x, unit='km'), "'mm'"), (lambda x: pck(x, x, joints='some'), 'official'),
    (lambda x: pck(x[:, :16], x[:, :16]), r'\(..., 17, 3\)'), (lambda x: mpjve(x[0], x[0]), r'\(N, J, 3\)'),
    (lambda x: mpjve(x, x, [0]*3), '20 frames'), (lambda x: acceleration_error(x[:2], x[:2]), '3 frames'),
    (lambda x: within_clips([[0, 1]]), r'\(N,\)'), (lambda x: within_clips([0, 1, 0, 0]), 'sort'),
    (lambda x: n_mpjpe(x, x, method='mean'), 'norm_ratio'), (lambda x: n_mpjpe(x[..., :2], x[..., :2]), 'one shape'),
    (lambda x: bone_symmetry(x[:, :5], get_skeleton('h36m17').subset(range(0, 1))), 'expected joints'),
    (lambda x: part_errors(x, x), '133'), (lambda x: joint_errors(x, x*float('inf')), 'not finite'),
    (lambda x: relative_bone_deviation(x, [1.]*17), '16 bones'), (lambda x: pck_groups('body22'), 'convert_joints')])
def test_wrong_input_is_named(call, text):
    with pytest.raises(ValueError, match=text): call(people())

def test_differences_do_not_cross_cuts():
    "A leap between clips does not count, however large"
    g = people(10)
    p = g.clone()
    p[5:, 3] += 100
    assert mpjve(p, g, [0]*5+[1]*5).max() < 1e-9 and mpjve(p, g)[4] > 5
    assert difference_error(p, g, [7]*5+[2]*5, order=2).max() < 1e-9


# ---- means

def table(seed=0):
    rng = np.random.default_rng(seed)
    actions, groups, values = [], [], []
    for g in range(8):
        n, a = int(rng.integers(20, 60)), 'walk sit eat'.split()[g % 3]
        actions += [a]*n; groups += [f'r{g}']*n; values += list(rng.normal(40+20*(g % 3), 3, n))
    return FrameErrors(dict(e=torch.tensor(values)), actions, groups)

def test_means_by_hand():
    t = table()
    v, a = t.errors['e'].numpy(), np.array(t.actions)
    by = [v[a == k].mean() for k in 'walk sit eat'.split()]
    assert t.macro('e').mean == pytest.approx(np.mean(by)) and t.frame_weighted('e').mean == pytest.approx(v.mean())
    assert [i.mean for i in t.by_action('e').values()] == pytest.approx(by)
    assert t.frame_weighted('e') == bootstrap_ci(v, np.array(t.groups))

def test_macro_interval_by_a_loop():
    t = table()
    v, a, g = t.of('e')
    names, picks = np.unique(g), np.random.default_rng(0).multinomial(8, np.full(8, 1/8), 1000)
    means = []
    for w in picks:
        weight = w[np.searchsorted(names, g)]
        means.append(np.mean([np.average(v[a == k], weights=weight[a == k]) for k in np.unique(a) if weight[a == k].any()]))
    i = t.macro('e')
    assert np.quantile(means, .002) <= i.low < i.mean < i.high <= np.quantile(means, .998)
    assert i.low <= np.quantile(means, .025) and i.high >= np.quantile(means, .975)   # widened: few groups

def test_macro_is_repeatable_and_needs_groups():
    t = table()
    assert t.macro('e') == t.macro('e') and t.macro('e', seed=1) != t.macro('e')
    alone = FrameErrors(dict(e=torch.ones(4)), ['a', 'a', 'b', 'b'], ['r']*4)
    assert math.isnan(alone.macro('e').low) and alone.macro('e').mean == 1

def test_frames_without_an_error_do_not_count():
    v = torch.tensor([math.nan, 2., math.nan, 4.])
    t = FrameErrors(dict(v=v), ['a', 'a', 'b', 'b'], ['r', 'r', 's', 's'])
    assert t.frame_weighted('v').mean == 3 and t.macro('v').mean == 3
    with pytest.raises(ValueError, match='no frame'): FrameErrors(dict(v=v[:1]), ['a'], ['r']).macro('v')

def test_join():
    a, b = table(), table(1)
    both = FrameErrors.join([a, b])
    assert len(both) == len(a)+len(b)
    assert both.frame_weighted('e').mean == pytest.approx((a.errors['e'].sum()+b.errors['e'].sum()).item()/len(both))
    with pytest.raises(ValueError, match='same errors'): FrameErrors.join([a, FrameErrors({}, [], [])])
    with pytest.raises(ValueError, match='at least one'): FrameErrors.join([])
