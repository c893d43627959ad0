"Scenes, their files, and both of their pages in a real browser."
import os, signal, sys, threading, time

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st

from browser import colored, needs_browser, open_page, shot, skinned, steady, until
from posebook.motion import Motion, MotionError, march, write_motion
from posebook.poseset import embedded_data
from posebook.sketch import as_positions, sketch
from posebook.skeleton import get_skeleton, list_skeletons
from posebook.viewer import (Scene, SkeletonActor, Viewer, hull_points, is_scene, open_scene, sphere_rays, view_file,
                             view_scene)

def home(S=21, B=2, seed=0):
    "A history that comes to rest, how far is left, and where it began"
    g = torch.Generator().manual_seed(seed)
    far = torch.zeros(B, 55, 3)
    far[:, 1:22] = .6*torch.randn(B, 21, 3, generator=g)
    history = torch.linspace(1, 0, S)[:, None, None, None]**2*far
    return history, history.norm(dim=-1).mean(-1)

def scene(S=21, B=2):
    history, left = home(S, B)
    return Scene.from_steps(history, left, source=history[0], names=[f'pose {b+1}' for b in range(B)], title='Home')

# ---- files

@given(st.integers(1, 4), st.integers(1, 3), st.booleans(), st.integers(0, 2))
@settings(max_examples=15, deadline=None)
def test_what_is_saved_is_loaded(tmp_path_factory, S, B, ghost, curves):
    x = torch.randn(S, B, 55, 3, generator=torch.Generator().manual_seed(S+10*B))
    a = Scene.from_steps(x, source=x[0] if ghost else None, fps=7.5, title='a ä')
    for k in range(curves): a = a.with_curves(lambda p: p.norm(dim=-1).sum(-1)+k, f'curve {k}')
    path = a.save(tmp_path_factory.mktemp('scene')/'a.npz')
    b = Scene.load(path)
    assert is_scene(path) and (b.title, b.fps, b.labels) == (a.title, a.fps, a.labels)
    assert [p.name for p in b.bodies] == [p.name for p in a.bodies]
    for p, q in zip(a.bodies, b.bodies):
        assert torch.equal(p.motion.poses, q.motion.poses) and torch.equal(p.motion.trans, q.motion.trans)
        assert (p.ghost is None) == (q.ghost is None) and (p.ghost is None or torch.equal(p.ghost.poses, q.ghost.poses))
        for k in a.labels: assert np.allclose(p.curves[k], q.curves[k], rtol=1e-6)

def test_a_motion_keeps_its_way(tmp_path):
    walk = embedded_data().motion('walk')
    a = Scene.from_motions(walk, ghosts={'walk': walk[:1]})
    b = Scene.load(a.save(tmp_path/'a.npz'))
    assert torch.equal(b.bodies[0].motion.trans, walk.trans) and torch.equal(b.bodies[0].ghost.trans, walk.trans[:1])

def test_the_least_that_a_file_may_hold(tmp_path):
    np.savez(tmp_path/'a.npz', format='posebook.scene', version=1, poses=np.zeros((3, 2, 55, 3), np.float32),
             values=np.zeros((3, 2)))
    a = Scene.load(tmp_path/'a.npz')
    assert (len(a), [b.name for b in a.bodies], a.labels, a.fps) == (3, ['1', '2'], ['distance (rad)'], 10)

BAD = [
    (dict(format='posebook.other'), 'expected .*posebook.scene'), (dict(format=3), "key 'format'"),
    (dict(version=2), 'format'), (dict(version='x'), "key 'version'"),
    (dict(poses=None), "key 'poses'.*found none"), (dict(poses=np.zeros((3, 2, 54, 3))), r'55, 3\), found .*54'),
    (dict(poses=np.zeros((0, 2, 55, 3))), "key 'poses'"), (dict(poses=np.full((3, 2, 55, 3), np.inf)), 'finite numbers'),
    (dict(poses=np.full((3, 2, 55, 3), 'x')), "key 'poses'"), (dict(trans=np.zeros((3, 2))), "key 'trans'"),
    (dict(values=np.zeros((2, 3))), "key 'values'"), (dict(values=np.full((3, 2), np.nan)), 'finite numbers'),
    (dict(values=np.zeros((4, 3, 2)), label=['a']), "key 'label'.*4 text"), (dict(ghost=np.zeros((3, 55, 3))), "key 'ghost'"),
    (dict(names=['a']), "key 'names'.*2 text"), (dict(names=['a', 'a']), "'a' twice"), (dict(fps=0.), 'a positive number'),
    (dict(fps=np.nan), "key 'fps'"), (dict(skeleton='horse'), "key 'skeleton'.*horse"), (dict(title=4), "key 'title'"),
]

@pytest.mark.parametrize('change, says', BAD, ids=range(len(BAD)))
def test_bad_files(tmp_path, change, says):
    good = dict(format='posebook.scene', version=1, poses=np.zeros((3, 2, 55, 3), np.float32), fps=10.)
    path = tmp_path/'bad.npz'
    np.savez(path, **{k: v for k, v in {**good, **change}.items() if v is not None})
    with pytest.raises(MotionError, match=says): Scene.load(path)

def test_files_that_are_no_arrays(tmp_path):
    class Evil:
        def __reduce__(self): return os.system, (f'touch {tmp_path/"ran"}',)
    np.savez(tmp_path/'evil.npz', format='posebook.scene', version=1, poses=np.array([Evil()], dtype=object))
    (tmp_path/'text.npz').write_text('no zip')
    for name in ('evil', 'text', 'none'):
        with pytest.raises(MotionError): Scene.load(tmp_path/f'{name}.npz')
    assert not (tmp_path/'ran').exists() and not is_scene(tmp_path/'text.npz')

def test_a_failure_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path/'a.npz'
    path.write_text('old')
    def broken(*args, **kwargs): raise RuntimeError('no more')
    monkeypatch.setattr(np, 'savez_compressed', broken)
    with pytest.raises(RuntimeError): scene().save(path)
    assert os.listdir(tmp_path) == ['a.npz'] and path.read_text() == 'old'

def test_what_a_file_cannot_hold_is_said(tmp_path):
    walk = embedded_data().motion('walk')
    for s, says in ((Scene.from_motions([walk, walk[:5]]), 'as many for each body'),
                    (Scene.from_motions(walk, ghosts={'walk': walk}), 'ghost: expected one frame'),
                    (Scene.from_motions({'a': walk, 'b': walk}, ghosts={'a': walk[:1]}), 'for all or for none')):
        with pytest.raises(MotionError, match=says): s.save(tmp_path/'a.npz')
    assert os.listdir(tmp_path) == []

# ---- opening

def test_open_scene(tmp_path):
    clips = embedded_data()
    clips.save(tmp_path/'set')
    many = open_scene(tmp_path/'set')
    assert len(many.bodies) == 4 and many.title.startswith('set: ')
    walk = clips.motion('walk')
    write_motion(walk, tmp_path/'walk.bvh')
    raw, smplx = open_scene(tmp_path/'walk.bvh', raw=True), open_scene(tmp_path/'walk.bvh')
    assert len(smplx.bodies[0].motion.skeleton) == 55 and len(raw) == len(smplx) == len(walk)
    write_motion(walk.resample(120), tmp_path/'fast.npz')
    assert open_scene(tmp_path/'fast.npz').fps == 30
    with pytest.raises(MotionError, match='walk.doc'): open_scene(tmp_path/'walk.doc')

@pytest.mark.parametrize('kind', ['html', 'png', 'svg', 'pdf', 'gif', 'npz'])
def test_view_file_writes(tmp_path, kind):
    scene(S=4, B=1).save(tmp_path/'in.npz')
    out = tmp_path/'new'/f'out.{kind}'
    assert view_file(tmp_path/'in.npz', out, energy=('size', lambda x: x.norm(dim=-1).sum(-1))) == \
        f'{out}: 4 frames at 10 fps'
    assert out.stat().st_size > 1000
    if kind == 'npz': assert Scene.load(out).labels == ['distance (rad)', 'size']

def test_energy_of_a_prior():
    from posebook.prior import PosePrior
    prior = PosePrior.from_pretrained('gaussian-cmu')
    a = scene().with_curves(prior.energy, 'energy')
    assert np.allclose(a.bodies[1].curves['energy'], prior.energy(a.bodies[1].motion.poses).detach())

# ---- bodies

@pytest.mark.parametrize('name', list_skeletons())
def test_every_layout_has_a_body(name):
    s = get_skeleton(name)
    x = torch.randn(2, len(s), 3, generator=torch.Generator().manual_seed(0))
    sk = sketch(*as_positions(x, s, True))
    actor = SkeletonActor(sk, 'a', sk.ground)
    xs, faces = actor.points(1), actor.triangles()
    assert xs.keys() == faces.keys() and all(np.isfinite(v).all() for v in xs.values())
    assert all(f.max() == len(xs[k])-1 for k, f in faces.items())
    assert min(v[:, 1].min() for v in xs.values()) > -1e-3                # no part is under the ground

@given(st.integers(0, 10**6), st.sampled_from([(8, 4), (14, 6), (24, 12)]))
@settings(max_examples=30, deadline=None)
def test_a_hull_is_inside_and_close(seed, detail):
    g = np.random.default_rng(seed)
    c, r = g.normal(size=(4, 3, 3)), g.uniform(.1, .5, (4, 3))
    rays, _ = sphere_rays(*detail)
    x = hull_points(c, r, rays)
    u = g.normal(size=(100, 3)); u /= np.linalg.norm(u, axis=-1, keepdims=True)
    true, ours = (c@u.T+r[..., None]).max(1), (x@u.T).max(1)
    assert (ours <= true+1e-9).all() and (true-ours).max() < .5*(1-np.cos(2*np.pi/min(detail)))+.02

# ---- the viewer without a browser

viser = pytest.importorskip('viser', reason='needs the extra [view]')

def wait_for(condition, seconds=60):
    end = time.monotonic()+seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(.05)

def viewer_threads(): return [t for t in threading.enumerate() if t.name.startswith('posebook viewer')]

def test_port_that_is_taken_and_threads_that_end(capsys):
    before = threading.active_count()
    with Viewer(scene(), port=0) as a:
        b = view_scene(scene(B=1), port=a.port, open_browser=False, block=False)
        assert b.port > a.port and len(viewer_threads()) == 2
        assert f'{b.url} (port {a.port} is taken): 1 bodies, 21 frames' in capsys.readouterr().out
        b.stop()
    assert viewer_threads() == []
    end = time.monotonic()+5
    while threading.active_count() > before and time.monotonic() < end: time.sleep(.05)
    assert threading.active_count() <= before
    assert capsys.readouterr().out == ''

def test_ctrl_c_ends_it(capsys):
    def interrupt():
        wait_for(viewer_threads)
        time.sleep(.3)
        os.kill(os.getpid(), signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler) # a job in the background may be told to ignore it
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        v = view_scene(scene(), port=0, open_browser=False)
    finally: signal.signal(signal.SIGINT, before)
    assert 'Ctrl-C ends it' in capsys.readouterr().out and v.ended.is_set() and viewer_threads() == []

def test_without_viser(monkeypatch):
    monkeypatch.setitem(sys.modules, 'viser', None)
    with pytest.raises(ImportError, match=r"pip install 'posebook\[view\]'"): Viewer(scene())

def test_one_frame_does_not_play():
    with Viewer(Scene.from_motions(march(1)), port=0) as v:
        v.play()
        assert not v.playing and v.slider.disabled
        v.step(1)
        assert v.frame == 0

def test_bodies_of_different_lengths_and_a_long_way():
    long, short = march(90), march(30)
    way = torch.linspace(0, 10, 90)[:, None]*torch.tensor([0., 0, 1])
    far = Motion(long.poses, long.trans+way, long.skeleton, 30)
    with Viewer(Scene.from_motions({'far': far, 'short': short}), port=0) as v:
        v.seek(89)
        at = np.array(v.actors[0].handles['skin'].position)+far.trans[89].numpy()
        assert v.in_place and np.allclose(at[[0, 2]], v.slots[0][[0, 2]], atol=.1)    # it stays in its place
        v.place_box.value = False; v.choose()
        assert np.allclose(np.array(v.actors[0].handles['skin'].position)+far.trans[0].numpy()*[1, 0, 1], v.slots[0], atol=1e-5)
        v.boxes[1].value = False; v.choose()
        assert not v.actors[1].handles['skin'].visible and v.actors[0].handles['skin'].visible

def test_many_bodies_stand_apart():
    with Viewer(scene(S=2, B=14), port=0) as v:
        d = np.linalg.norm(v.slots[:, None]-v.slots[None], axis=-1)+10*np.eye(14)
        assert d.min() > 1 and len(set(v.slots[:, 2])) == 3 and (np.diff(v.slots[:5, 0]) > 0).all()

# ---- in a browser

@needs_browser
def test_the_page_in_a_browser(tmp_path):
    path = scene().save(tmp_path/'a.html')
    state = lambda: page.evaluate("document.querySelector('.pb-player').player.state()")
    with open_page(path.as_uri(), 900, 640) as page:
        until(page, "document.querySelector('.pb-player').player.state().t > 2")           # it plays
        page.get_by_label('pause').click()
        assert not state()['on']
        page.get_by_label('time').fill('0')
        first = shot(page, tmp_path/'first.png')
        assert min(colored(first)) > 300                                   # not blank: a left and a right
        page.get_by_label('time').fill('20')
        assert (np.abs(shot(page)-first).sum(-1) > 60).sum() > 2000        # the slider moves the body
        page.get_by_label('previous').click(); assert state()['t'] == 19
        page.get_by_label('next', exact=True).click(); assert state()['t'] == 20
        page.get_by_label('time').fill('10')
        said, left = page.locator('.pb-curve output').text_content(), home()[1][10]
        assert said == f'distance (rad): pose 1 {left[0]:.3g} · pose 2 {left[1]:.3g}'
        curve = page.locator('.pb-curve canvas')
        curve.click(position=dict(x=curve.bounding_box()['width']-9, y=30))
        assert state()['t'] == 20                                          # a click on the curve goes there
        haunted = shot(page)
        page.get_by_label('ghost').click()
        assert (shot(page) != haunted).any(-1).sum() > 500
        page.get_by_label('loop').click()
        page.get_by_label('play').click()
        until(page, "(s => !s.on && s.t === 20)(document.querySelector('.pb-player').player.state())")

@needs_browser
def test_the_viewer_in_a_browser(tmp_path):
    history, left = home(S=60, B=1)
    one = Scene.from_steps(history, left, source=history[0], names=['pose'], fps=10, title='Home')
    body = dict(x=150, y=150, width=320, height=270)                       # beside the controls, below the notice
    with Viewer(one, port=0) as v, open_page(v.url, 800, 420, webgl=True) as page:
        v.server.scene.configure_default_lights(cast_shadow=False)         # which cost a processor most of its time
        wait_for(lambda: v.playing and v.frame > 1)                        # it loads, and it plays
        page.get_by_role('button', name='Pause').dispatch_event('click')
        wait_for(lambda: not v.playing)
        v.seek(0)
        wait_for(lambda: skinned(shot(page, **body)) > 1000)               # not blank: a body with a skin
        v.skin_box.value = False
        wait_for(lambda: min(colored(shot(page, **body))) > 100)           # its bones: a left and a right
        v.skin_box.value = True
        wait_for(lambda: skinned(shot(page, **body)) > 1000)
        first = steady(page, **body)
        page.get_by_role('slider').first.press('End')                      # the slider moves the body
        wait_for(lambda: v.frame == 59)
        wait_for(lambda: (np.abs(shot(page, **body)-first).sum(-1) > 60).sum() > 500)
        page.get_by_role('button', name='previous').dispatch_event('click'); wait_for(lambda: v.frame == 58)
        page.get_by_role('button', name='next').dispatch_event('click'); wait_for(lambda: v.frame == 59)
        until(page, 'Object.values(window.__viserTestpoints.uplots)[0].chart.data[2][59] < 1e-6')    # the dot is here
        assert 'distance (rad)' in page.content() and '5.90 s' in page.content()
        haunted = steady(page, **body)
        v.ghost_box.value = False
        wait_for(lambda: (shot(page, **body) != haunted).any(-1).sum() > 300)
