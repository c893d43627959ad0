"Fits to keypoints: exact recovery where it is possible, batches, outliers, presets, tracks, bodies with shape, files."
import pytest
import torch

from posebook.amass import read_npz
from posebook.coordinates import PriorError
from posebook.fit2d import (BODY, PRESETS, RECIPES, Fit2D, Keypoints2D, cheapest_path, fit_keypoints, made_up_keypoints,
                            picture_cameras, pixels_per_metre, plot_fits, propose, recipe, seen_joints)
from posebook.fitting import Bones, Guess
from posebook.gaussian import GaussianPrior
from posebook.keypoints import Keypoints
from posebook.metrics import angular_error, mpjpe
from posebook.poses import embedded_data

BONES = Bones(BODY)

@pytest.fixture(scope='module')
def poses():
    x = torch.as_tensor(embedded_data().poses)
    return x[torch.linspace(0, len(x)-1, 12).long()]

@pytest.fixture(scope='module')
def prior(): return GaussianPrior('full').fit(torch.as_tensor(embedded_data().poses))

# ---- cameras and the term

def test_camera_of_a_picture():
    k = Keypoints(torch.tensor([[[10., 20.]]*17]*2), torch.ones(2, 17), 'coco17', ('a', 'b'), torch.tensor([[640, 480], [100, 200]]))
    cam = picture_cameras(k)
    assert cam.shape == (2,) and torch.allclose(cam.fx, torch.tensor([800., 50000.**.5]))
    assert torch.allclose(cam.center, torch.tensor([[320., 240.], [50., 100.]]))
    up = cam.project(torch.tensor([[[.1, .2, -3.]]]))[0, 0]
    assert up[0] > 320 and up[1] < 240 # right is right, up is up, the person at negative z
    assert (picture_cameras(k, 900.).fx == 900).all() and picture_cameras(k, size=(30, 40)).fx[0] == 50

def test_term_is_zero_at_the_truth_and_has_gradients(poses):
    k, true, joints = made_up_keypoints(poses[:3])
    cam = picture_cameras(k, 1400.)
    t = (joints-BONES.joints(true))[:, 0]
    term = Keypoints2D(k.points, k.confidence, k.layout, cam.replaced(focal=cam.focal[:, None], center=cam.center[:, None]))
    v = true[:, None].clone().requires_grad_()
    assert term(Guess(BONES, v, t[:, None])).abs().max() < 1e-4
    out = term(Guess(BONES, v+.05, t[:, None]))
    g, = torch.autograd.grad(out.sum(), v)
    assert (out > 0).all() and g.isfinite().all() and g[:, 0, 16].abs().sum() > 0
    assert g[:, 0, 25:].abs().sum() == 0 # hands are not seen

def test_an_outlier_is_given_up(poses):
    k, true, joints = made_up_keypoints(poses[:1])
    cam = picture_cameras(k, 1400.)
    t = (joints-BONES.joints(true))[:, :1, ]
    cost = []
    for far in (30., 300., 3000.):
        p = k.points.clone()
        p[0, 4, 0] += far
        term = Keypoints2D(p, k.confidence, k.layout, cam, sigma=10., robust=3.)
        cost.append(term(Guess(BONES, true[:, None], t[:, 0][:, None])).item())
    assert cost[0] < cost[1] < cost[2] < .5*3**2+1e-3 # never more than half of robust squared

def test_scale(poses):
    k, _, joints = made_up_keypoints(poses)
    rest = seen_joints(BONES.joints(torch.zeros(1, 55, 3)), k.layout, BONES)[0][0]
    ratio = pixels_per_metre(k, rest)/(1400/-joints[:, 0, 2])
    assert (ratio-1).abs().median() < .1
    k.confidence[:] = 0
    assert (pixels_per_metre(k, rest) == 100).all()

# ---- proposals

def test_a_pose_on_the_table_is_found(poses):
    k, true, joints = made_up_keypoints(poses)
    cam = picture_cameras(k, 1400.)
    p = propose(k, cam, poses, BONES, yaws=48)
    best = p.misfit.argmin(0)
    found = p.poses[best, torch.arange(len(k))]
    same = (angular_error(found[:, 1:22], true[:, 1:22]).mean(1) < 1)
    assert same.float().mean() > .6 # some are alike, and none is from exactly this side
    assert (p.misfit >= -1e-4).all() and p.poses.shape == (4, 12, 55, 3)
    d = p.translation[best, torch.arange(len(k)), 2]/(joints-BONES.joints(true))[:, 0, 2]
    assert (d[same]-1).abs().median() < .1

def test_turned_pictures_turn_the_proposals(poses):
    "The match does not mind how the camera is held"
    k, *_ = made_up_keypoints(poses[:4])
    cam = picture_cameras(k, 1400.)
    turned = Keypoints(torch.stack([k.points[..., 1], 1000-k.points[..., 0]], -1), k.confidence, k.layout, k.images, k.sizes)
    a, b = (propose(x, cam, poses, BONES) for x in (k, turned))
    assert torch.allclose(a.misfit, b.misfit, atol=1e-3)

def test_path_prefers_what_follows():
    cost = torch.tensor([[0., 1., 0., 1.], [.1, 0., .1, 0.]])
    apart = torch.tensor([0., 5.])[:, None, None, None].expand(2, 4, 3, 3)
    assert cheapest_path(cost, apart).tolist() == [1, 1, 1, 1]
    assert cheapest_path(cost, apart*0).tolist() == [0, 1, 0, 1]

# ---- fits

def test_prior_beats_none(poses, prior):
    k, true, joints = made_up_keypoints(poses, 2., .05)
    cam = picture_cameras(k, 1400.)
    off = {}
    for n, p in (('none', None), ('prior', prior)):
        f = fit_keypoints(k, p, cam, pace=.5, proposals=500)
        off[n] = mpjpe(f.joints[:, :22], joints[:, :22], root=0).mean().item()
        assert f.poses.shape == (12, 55, 3) and f.poses.isfinite().all() and (f.translation[:, 2] < 0).all()
        assert f.median_error() < 6 and (f.poses[:, 22:] == 0).all()
        assert (f.error.isnan() == ~k.seen()).all()
    assert off['prior'] < .85*off['none']

def test_rows_do_not_know_each_other(poses, prior):
    k, *_ = made_up_keypoints(poses[:6], 2.)
    cam = picture_cameras(k, 1400.)
    both, alone = (fit_keypoints(k[r], prior, cam[r], pace=.3, proposals=300) for r in (slice(0, 6), slice(2, 4)))
    assert torch.allclose(both.joints[2:4], alone.joints, atol=.02)

@pytest.mark.parametrize('preset', list(PRESETS))
def test_presets_run(poses, prior, preset):
    k, *_ = made_up_keypoints(poses[:3])
    f = fit_keypoints(k, prior, picture_cameras(k, 1400.), preset=preset, proposals=200, pace=.4)
    assert f.median_error() < 10

@pytest.mark.parametrize('layout', ['coco17', 'openpose18', 'coco_wholebody133'])
def test_layouts(poses, prior, layout):
    k, true, joints = made_up_keypoints(poses[:3], layout=layout)
    f = fit_keypoints(k, prior, picture_cameras(k, 1400.), proposals=300, pace=.4)
    assert f.median_error() < 8

def test_a_track_is_smooth(poses, prior):
    k, true, joints = made_up_keypoints(poses[:1].repeat(8, 1, 1), 4., seed=1)
    k = Keypoints(k.points[:1]+torch.randn(8, 25, 2, generator=torch.Generator().manual_seed(0))*4, torch.ones(8, 25), 'body25',
                  [str(i) for i in range(8)], k.sizes)
    cam = picture_cameras(k, 1400.)
    move = lambda f: f.joints[:, :22].diff(n=2, dim=0).norm(dim=-1).mean().item()
    a, b = (fit_keypoints(k, prior, cam, smooth=s, pace=.4, proposals=300) for s in (None, .01))
    assert move(b) < .2*move(a) and b.median_error() < 8

def test_a_body_with_shape(poses, prior):
    body = pytest.importorskip('posebook.body').Body.load('posebook-light')
    k, true, joints = made_up_keypoints(poses[:4], model=body)
    f = fit_keypoints(k, prior, picture_cameras(k, 1400.), model=body, proposals=200, pace=.3)
    assert f.shape.shape == (4, min(10, body.num_shapes)) and f.shape.abs().max() < 3 and f.joints.shape == (4, 55, 3)
    assert f.median_error() < 10
    track = fit_keypoints(k, prior, picture_cameras(k, 1400.), model=body, proposals=200, smooth=1., pace=.1, hypotheses=2)
    assert (track.shape == track.shape[0]).all() # one person

# ---- files, figures, errors

def test_files(tmp_path, poses):
    k, *_ = made_up_keypoints(poses[:3])
    f = fit_keypoints(k, None, picture_cameras(k, 1400.), pace=.1)
    m = read_npz(f.save(tmp_path/'new'/'m.npz', fps=25)[0])
    assert torch.allclose(m.poses, f.poses, atol=1e-5) and torch.allclose(m.trans, f.translation, atol=1e-5) and m.fps == 25
    crowd = Keypoints(k.points, k.confidence, k.layout, ('a.jpg', 'b.jpg', 'a.jpg'), k.sizes)
    g = Fit2D(crowd, f.camera, f.poses, f.translation, None, f.joints, f.pixels, f.cost, f.model)
    assert [p.name for p in g.save(tmp_path/'crowd')] == ['a_0.npz', 'b_0.npz', 'a_1.npz']
    with pytest.raises(PriorError, match='clearest'): g.save(tmp_path/'one.npz')
    fig = plot_fits(g, dict(a=None))
    assert len(fig.axes) == 2 and len(plot_fits(g, zoom=True).axes) == 2

@pytest.mark.parametrize('change, text', [(dict(preset='x'), 'preset'), (dict(hypotheses=7), 'divisor')])
def test_bad_options(poses, change, text):
    k, *_ = made_up_keypoints(poses[:2])
    with pytest.raises(PriorError, match=text): fit_keypoints(k, None, **change)

def test_too_little_is_refused(poses):
    k, *_ = made_up_keypoints(poses[:2])
    k.confidence[1, 3:] = 0
    with pytest.raises(PriorError, match="the first in '000001'"): fit_keypoints(k)

def test_a_layout_without_a_body_is_brought_to_one_that_has(poses):
    k = Keypoints(torch.rand(2, 26, 2)*100, torch.ones(2, 26), 'halpe26', ('a', 'b'))
    with pytest.raises(PriorError, match=r"to\('body25'\)"): fit_keypoints(k)
    assert fit_keypoints(k.to('body25'), pace=.02).poses.shape == (2, 55, 3)

def test_every_kind_has_a_recipe(prior):
    assert recipe(prior) == RECIPES['GaussianPrior']
    from posebook.prior import PosePrior
    for n in ('joint-flow-cmu', 'global-flow-cmu', 'pose-ndf-cmu'):
        assert type(PosePrior.from_pretrained(n)).__name__ in RECIPES
