"""Pictures of bodies: every view and layout of poses, determinism, what is refused."""
import pytest, torch

from posebook.portraits import (as_body, before_ghost, contact_shadows, frame_bodies, plot_bodies, plot_body_strip,
                                portrait_camera, render_bodies, stand_bodies)
from posebook.poses import PoseDataModule
from posebook.sketch import VIEWS, figure_png

@pytest.fixture(scope='module')
def poses():
    m = PoseDataModule().whole_set().motion('walk')
    return m.poses[::13].clone()

@pytest.mark.parametrize('view', [*VIEWS, (20, 30)], ids=str)
def test_every_view_holds_the_whole_body(poses, view):
    images = render_bodies(poses, view=view, size=60, shadow=False)
    assert images.shape[0] == len(poses) and images.shape[1] == 60
    border = torch.cat([images[:, 0, :, 3], images[:, -1, :, 3]], -1)
    assert border.max() == 0 and images[:, :, 0, 3].max() == 0 and images[:, :, -1, 3].max() == 0
    share = (images[..., 3] > .5).float().mean((1, 2))
    assert (share > .03).all() and (share < .6).all()

def test_poses_of_22_joints_and_one_alone(poses):
    plain = poses.clone(); plain[:, 22:] = 0
    a, b = render_bodies(plain, size=50), render_bodies(plain[:, :22], size=50)
    assert torch.equal(a, b)
    assert render_bodies(poses[0], size=50).shape[0] == 1

def test_feet_on_the_ground_and_common_levels(poses):
    v, j = stand_bodies(poses)
    assert v[..., 1].amin(1).abs().max() < 1e-5
    high, _ = stand_bodies(poses, level=-2.)
    assert high[..., 1].amin() > .5
    moved, _ = stand_bodies(poses, places=torch.arange(3*len(poses)).view(-1, 3))
    assert moved[..., 0].mean(1).diff().min() > 2

def test_shadow_lies_at_the_feet(poses):
    v, _ = stand_bodies(poses[:1])
    body, window = as_body('posebook-light'), frame_bodies(v)
    cam = portrait_camera('three-quarter', window, 60.)
    s = contact_shadows(v, body.faces, cam)[0]
    rows = torch.arange(len(s)).float()
    assert s.max() > .3 and (s.sum(1)*rows).sum()/s.sum() > .85*len(s)
    lifted = contact_shadows(v+torch.tensor([0, .5, 0]), body.faces, cam)[0]
    assert lifted.sum() < .1*s.sum()

def test_figures_are_deterministic(poses):
    a, b = (figure_png(plot_bodies(poses, ghosts=poses.flip(0), titles=['x']*len(poses)), 50) for _ in range(2))
    assert a == b
    a, b = (figure_png(plot_body_strip(poses, 3, fps=30), 50) for _ in range(2))
    assert a == b

def test_backends_agree(poses):
    a, b = (render_bodies(poses[:2], size=80, backend=name) for name in ('torch', 'auto'))
    assert (a-b).abs().mean() < 1e-4

def test_nearer_bodies_hide_farther(poses):
    places = torch.tensor([[0., 0, 0], [0, 0, -2.]])
    fig = plot_body_strip(poses[:2], 2, places, view='front', colors=['red', 'blue'])
    image = fig.axes[0].images[0].get_array()
    red = (image[..., 0] > 1.5*image[..., 2]) & (image[..., 3] > .9)
    blue = (image[..., 2] > 1.5*image[..., 0]) & (image[..., 3] > .9)
    assert red.sum() > 2*blue.sum()

def test_a_ghost_is_behind():
    image, ghost = torch.zeros(1, 2, 4), torch.ones(1, 2, 4)
    image[0, 0] = torch.tensor([1., 0, 0, 1])
    out = before_ghost(image, ghost, .5)
    assert out[0, 0].tolist() == [1, 0, 0, 1] and out[0, 1].tolist() == [1, 1, 1, .5]

@pytest.mark.parametrize('options, says', [
    (dict(titles=['a']), 'titles, found 1'), (dict(ghosts=torch.zeros(1, 55, 3)), 'ghosts, found 1'),
    (dict(colors=['red']), 'colors, found 1'), (dict(view='left'), "unknown view 'left'")])
def test_bad_options_are_refused(poses, options, says):
    with pytest.raises(ValueError) as e: plot_bodies(poses, **options)
    assert says in str(e.value)

def test_bad_poses_are_refused(poses):
    for bad, says in ((torch.zeros(2, 24, 3), '22 or 55 joints'), (poses*torch.nan, 'not finite'), (torch.zeros(3), '(N, J, 3)')):
        with pytest.raises(ValueError) as e: render_bodies(bad)
        assert says in str(e.value)
    with pytest.raises(ValueError): plot_bodies(torch.zeros(201, 22, 3))
