"Tracks: an assignment against scipy, names of frames, people who cross, leave and come back, repairs, holes, bad input."
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from posebook.keypoints import KeypointError, Keypoints, read_keypoints, write_openpose
from posebook.skeleton import get_skeleton
from posebook.tracks import Track, assign, find_tracks, frame_numbers, plot_tracks, recordings

HERE = Path(__file__).resolve()
DATA = next((p for f in HERE.parents for p in (f/'shared/data', f.parent/'shared/data') if p.is_dir()), None)
real = pytest.mark.skipif(DATA is None, reason='no real keypoints at hand')
COCO, FLIP = get_skeleton('coco17'), list(get_skeleton('coco17').mirror)

def person(T=30, x=200., seed=0, speed=4.):
    "Somebody of 200 pixels whose legs and arms swing while they go, (T, 17, 2)"
    g = torch.Generator().manual_seed(seed)
    at = dict(nose=(0, 0), eye=(5, -6), ear=(9, -2), shoulder=(22, 35), elbow=(30, 75), wrist=(32, 110), hip=(14, 110),
              knee=(16, 155), ankle=(17, 200))
    side, part = [-1. if 'right' in n else 1. for n in COCO.joints], [n.split('_')[-1] for n in COCO.joints]
    still = torch.tensor([[s*at[n][0], at[n][1]] for s, n in zip(side, part)])
    swing = torch.tensor([s*dict(wrist=25., elbow=12., knee=14., ankle=30.).get(n, 0.) for s, n in zip(side, part)])
    t = torch.arange(T)
    p = still+torch.tensor([x, 100.])+torch.stack([speed*t[:, None]+swing*(t[:, None]/4).sin(), torch.zeros(T, 17)], -1)
    return p+torch.randn(p.shape, generator=g)*.7

def track(points, **more):
    return Track(points, torch.full(points.shape[:2], .9), 'coco17', torch.arange(len(points)), **more)

def people(rows, names, **more):
    return Keypoints(torch.stack(list(rows)), torch.full((len(names), 17), .9), 'coco17', names, **more)

# ---- frames

def test_natural_order():
    k = people(person(12), [f'v_{i}' for i in range(12)])
    k = k[sorted(range(12), key=lambda i: k.images[i])] # as a folder lists them: 0, 1, 10, 11, 2
    [t] = find_tracks(k, mend=False)
    assert t.frames.tolist() == [*range(12)] and torch.equal(t.points, person(12))

@pytest.mark.parametrize('names, want', [
    (['c1_f9', 'c1_f10'], [('c1_f#', 9), ('c1_f#', 10)]), (['f9_c1', 'f10_c1'], [('f#_c1', 9), ('f#_c1', 10)]),
    (['a1b1', 'a2b7'], [('a1b#', 1), ('a2b#', 7)]), (['x', '3'], [('x', 0), ('#', 3)]), (['007.png'], [('#.png', 7)]), ([], [])])
def test_numbers_in_names(names, want): assert frame_numbers(names) == want

def test_frames_of_a_detector_win_over_names():
    k = people(person(3), ['c', 'a', 'b'], frames=torch.tensor([5, 3, 4]))
    assert [f for f in recordings(k)['']] == [3, 4, 5]

def test_a_frame_given_twice():
    with pytest.raises(KeypointError, match="frame 1: expected one picture, found 'v_1' and 'v_01'; remove one of them"):
        find_tracks(people(person(3), ['v_0', 'v_1', 'v_01']))

def test_two_recordings_in_a_folder():
    k = people(torch.cat([person(5), person(4, 210.)]), [f'run_{i}' for i in range(5)]+[f'walk_{i}' for i in range(4)])
    assert [(t.name, len(t)) for t in find_tracks(k)] == [('run', 5), ('walk', 4)]

# ---- who is who

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 7), st.integers(0, 7), st.integers(0, 10**6))
def test_assignment_is_least(n, m, seed):
    optimize = pytest.importorskip('scipy.optimize')
    cost, limit = np.random.default_rng(seed).uniform(0, 1, (n, m)).round(2), .6
    pairs = assign(cost, limit)
    assert len({i for i, _ in pairs}) == len(pairs) == len({j for _, j in pairs})
    capped = np.minimum(cost, limit)
    best = capped[optimize.linear_sum_assignment(capped)].sum()+limit*abs(n-m)/2
    mine = sum(cost[i, j] for i, j in pairs)+limit*(n+m-2*len(pairs))/2
    assert mine <= best+1e-9

def test_people_in_any_order_who_cross():
    a, b = person(40, 100., 0, 6.), person(40, 340., 1, -6.)+torch.tensor([0., 40.])
    g = torch.Generator().manual_seed(0)
    rows, names = [], []
    for t in torch.randperm(40, generator=g).tolist():
        for i in torch.randperm(2, generator=g).tolist(): rows.append((a, b)[i][t]); names.append(f'{t}.jpg')
    first, second = sorted(find_tracks(people(rows, names)), key=lambda t: t.points[0, 0, 0])
    assert torch.equal(first.points, a) and torch.equal(second.points, b) and (first.mended, second.mended) == ({}, {})

def test_many_people():
    all_ = [person(10, 150.*i, i) for i in range(8)]
    rows = [p[t] for t in range(10) for p in all_[t % 8:]+all_[:t % 8]]
    tracks = find_tracks(people(rows, [f'{t}' for t in range(10) for _ in range(8)]))
    assert len(tracks) == 8 and all(len(t) == 10 for t in tracks)
    assert {tuple(t.points[-1, 0].tolist()) for t in tracks} == {tuple(p[-1, 0].tolist()) for p in all_}

@pytest.mark.parametrize('away, want', [(3, [30]), (10, [30]), (11, [10, 9])])
def test_leaving_and_coming_back(away, want):
    keep = [t for t in range(30) if not 10 <= t < 10+away]
    tracks = find_tracks(people(person()[keep], [f'{t}' for t in keep]))
    assert [len(t) for t in tracks] == want
    if want == [30]: assert tracks[0].filled.sum() == away and (tracks[0].points-person()).abs().max() < 45

def test_ids_are_believed():
    k = people(person(6), [f'{t}' for t in range(6)], ids=torch.tensor([4, 4, 9, 9, 4, 4]))
    assert [(t.person, t.frames.tolist()) for t in find_tracks(k, mend=False)] == [(4, [0, 1, 4, 5]), (9, [2, 3])]
    with pytest.raises(KeypointError, match='each id once in a picture'):
        find_tracks(people(person(2), ['0', '0'], ids=torch.tensor([1, 1])))

def test_doubles_and_ghosts():
    a = person(10)
    rows = [v for t in range(10) for v in ([a[t], a[t]+2] if t % 3 else [a[t]])]
    names = [f'{t}' for t in range(10) for _ in range(2 if t % 3 else 1)]
    k = people(rows, names)
    c = k.confidence.clone(); c[[i for i, n in enumerate(names) if names[:i].count(n)]] = .4
    [t] = find_tracks(replace(k, confidence=c))
    assert torch.equal(t.points, a)
    ghost = people([*a, a[4]+torch.tensor([300., 0])], [f'{t}' for t in range(10)]+['4'])
    assert [len(t) for t in find_tracks(ghost)] == [10, 1] and [len(t) for t in find_tracks(ghost, shortest=3)] == [10]

def test_nobody():
    k = people(person(3), ['0', '1', '2'])
    none = replace(k, confidence=0*k.confidence)
    with pytest.warns(UserWarning, match='3 people without a joint that was seen'):
        with pytest.raises(KeypointError, match='somebody, found nobody'): find_tracks(none)
    with pytest.raises(KeypointError, match='nobody'): find_tracks(k[:0])
    with pytest.raises(KeypointError, match='a track of 5 frames, found 1 shorter'): find_tracks(k, shortest=5)
    c = k.confidence.clone(); c[1] = 0
    with pytest.warns(UserWarning, match='1 people'): [t] = find_tracks(replace(k, confidence=c))
    assert t.mended == dict(filled=1) and torch.allclose(t.points[1], (k.points[0]+k.points[2])/2, atol=1e-3)

# ---- mending

@pytest.mark.parametrize('start, n', [(12, 1), (10, 5), (17, 3), (5, 9)])
@pytest.mark.parametrize('what', ['all', 'legs', 'arms'])
def test_swaps(start, n, what):
    clean, part = person(), dict(all=COCO.joints, legs=('knee', 'ankle'), arms=('elbow', 'wrist'))[what]
    ids = [i for i, j in enumerate(COCO.joints) if what == 'all' or j.split('_')[-1] in part]
    bad = clean.clone()
    bad[start:start+n, ids] = clean[start:start+n][:, FLIP][:, ids]
    t = track(bad).repair_swaps()
    off = (t.points-clean).norm(dim=-1)
    near = (clean-clean[:, FLIP]).norm(dim=-1) # where left and right are at one place their names are anybody's guess
    assert (off[near > 14] < 1e-4).all() and n <= t.mended['swapped'] <= n+4

def test_swaps_take_the_confidence_along_and_clean_tracks_stay():
    clean, c = person(), torch.rand(30, 17, generator=torch.Generator().manual_seed(1))*.3+.6
    t = Track(clean, c, 'coco17', torch.arange(30))
    assert t.repair_swaps().mended == {} and torch.equal(t.repair_swaps().points, clean)
    bad, cb = clean.clone(), c.clone(); bad[9], cb[9] = clean[9, FLIP], c[9, FLIP]
    knee = COCO.index('left_knee')
    assert torch.isclose(Track(bad, cb, 'coco17', torch.arange(30)).repair_swaps().confidence[9, knee], c[9, knee])

def test_few_frames_are_left_alone():
    for n in (1, 2, 3): assert find_tracks(people(person(n), [f'{t}' for t in range(n)]))[0].mended == {}

def test_jumps():
    bad = person(); wrist = COCO.index('left_wrist')
    bad[10, wrist] += 120; bad[20:22, wrist] -= 90; bad[25:29, wrist] += 60 # the last lasts too long to be a jump
    t = track(bad).drop_jumps()
    assert t.mended == dict(jumps=3) and (t.confidence[:, wrist] == 0).nonzero()[:, 0].tolist() == [10, 20, 21]
    assert (t.mend().points[[10, 20, 21], wrist]-person()[[10, 20, 21], wrist]).norm(dim=-1).max() < 12

def test_holes_of_joints():
    t = track(person())
    c = t.confidence.clone()
    c[5:9, 3] = 0; c[2:20, 4] = 0; c[:3, 5] = 0; c[28:, 6] = 0; c[:, 7] = 0; c[12, :] = 0
    full = replace(t, confidence=c).fill()
    assert (full.confidence[5:9, 3] == .45).all() and (full.points[5:9, 3]-t.points[5:9, 3]).norm(dim=-1).max() < 6
    for rows, j in ((slice(2, 20), 4), (slice(0, 3), 5), (slice(28, 30), 6), (slice(0, 30), 7)):
        assert (full.confidence[rows, j] == 0).all() and (full.points[rows, j] == 0).all()
    assert full.mended == dict(joints=int(((full.confidence > 0)&(c == 0)).sum())) and not full.filled.any()

def test_uneven_frames():
    t = replace(track(person())[[0, 5, 10, 20, 25]], step=5)
    full = t.fill()
    assert full.frames.tolist() == [0, 5, 10, 15, 20, 25] and full.filled.tolist() == [False]*3+[True]+[False]*2
    assert torch.allclose(full.points[3], (t.points[2]+t.points[3])/2, atol=1e-3)

# ---- bad tracks

@pytest.mark.parametrize('change, says', [
    (dict(points=torch.zeros(3, 16, 2)), r'points: expected shape \(3, 17, 2\)'), (dict(confidence=torch.zeros(2, 17)), 'confidence'),
    (dict(frames=torch.tensor([0, 2, 2])), 'each once, in order'), (dict(fps=0.), 'fps'),
    (dict(confidence=torch.full((3, 17), 1.5)), r'in \[0, 1\]'),
    (dict(confidence=torch.zeros(3, 17)), 'a joint that was seen'),
    (dict(points=torch.full((3, 17, 2), float('nan'))), 'a joint that was seen')])
def test_bad_tracks(change, says):
    good = dict(points=person(3), confidence=torch.ones(3, 17), layout='coco17', frames=torch.arange(3), person=4, name='park')
    with pytest.raises(KeypointError, match=says) as e: Track(**good|change)
    assert 'park person 4' in str(e.value)

def test_nan_counts_as_not_seen():
    x, c = person(4), torch.ones(4, 17)
    x[1, 2, 0], x[2, 3] = float('nan'), float('inf'); c[0, 0] = float('nan')
    t = Track(x, c, 'coco17', torch.arange(4))
    assert t.mended == dict(cleaned=3) and t.points.isfinite().all() and t.confidence[1, 2] == 0
    assert t.fill().mended == dict(cleaned=3, joints=2) # the one of the first frame has no frame before

# ---- files

def test_through_files(tmp_path):
    k = people(torch.cat([person(12), person(12, 500., 2)]), [f'cam0_{t}' for t in range(12)]*2)
    body = k.to('body25')
    write_openpose(body, tmp_path)
    (tmp_path/'.cam0_3_keypoints.json').write_text('{')
    tracks = find_tracks(read_keypoints(tmp_path))
    assert [(t.name, len(t), t.frames[-1].item()) for t in tracks] == [('cam0', 12, 11)]*2
    assert [n in tracks[0].to('h36m17').layout.joints for n in ('pelvis', 'thorax')] == [True]*2
    assert plot_tracks(tracks).axes

@real
def test_real_openpose():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        [t] = find_tracks(read_keypoints(DATA/'keypoints/openpose_body25'))
    assert len(t) == 81 and 'swapped' not in t.mended and t.mended['jumps'] <= 10
    assert (t.confidence > 0).float().mean() > .99
