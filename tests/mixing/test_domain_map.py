from __future__ import annotations

import numpy as np
import pytest

from acodm_cli.errors import ScheduleError, UsageError
from acodm_cli.mixing.domain_map import DomainMap, read_map

FIVE = ["web", "code", "books", "wiki", "law"]
SEVEN = {"law": 10.0, "web_b": 30.0, "code_py": 1.0, "books": 5.0, "wiki": 4.0, "web_a": 50.0, "code_c": 3.0}
SPLIT = {"web": "web_a+web_b", "code": "code_py+code_c"}


def test_five_domains_drive_seven_by_splitting() -> None:
    split = read_map(SPLIT, FIVE, SEVEN)
    assert list(split.tokens) == ["web_a", "web_b", "code_py", "code_c", "books", "wiki", "law"]
    weights_SM = np.random.default_rng(0).dirichlet(np.ones(5), 20)
    weights_SK = split.divided(weights_SM)
    assert np.allclose(weights_SK.sum(axis=1), 1)
    assert np.allclose(weights_SK @ split.is_part_MK.T, weights_SM)
    assert np.allclose(weights_SK[:, 0] / weights_SK[:, 1], 5 / 3)
    assert np.allclose(weights_SK[:, 2] / weights_SK[:, 3], 1 / 3)
    assert split.said() == [
        "web -> web_a 0.62 + web_b 0.38 (by tokens)",
        "code -> code_py 0.25 + code_c 0.75 (by tokens)",
    ]
    assert split.info()["domains"]["code"] == {"code_py": 0.25, "code_c": 0.75}


def test_mergers_add_up() -> None:
    merged = read_map({"web": "all", "wiki": "all", "code": "py"}, ["web", "code", "wiki"], {"py": 7, "all": 2})
    assert list(merged.tokens) == ["all", "py"]
    assert merged.divided(np.array([0.2, 0.5, 0.3])) == pytest.approx([0.5, 0.5])
    assert merged.said() == ["web + wiki -> all", "code -> py"]
    # What belongs to both is divided by their weights, evenly if they have none.
    assert merged.gathered(np.array([10.0, 6.0]), np.array([0.2, 0.5, 0.3])) == pytest.approx([4, 6, 6])
    assert merged.gathered(np.array([10.0, 6.0]), np.zeros(3)) == pytest.approx([5, 6, 5])


def test_a_domain_may_join_one_of_the_same_name() -> None:
    joined = read_map({"wiki": "web"}, ["web", "code", "wiki"], {"code": 1, "web": 1})
    assert joined.divided(np.array([0.2, 0.5, 0.3])) == pytest.approx([0.5, 0.5])


def test_what_is_left_out_goes_to_the_others_in_proportion() -> None:
    fewer = read_map({"law": ""}, ["web", "code", "law"], {"web": 30, "code": 10})
    assert fewer.divided(np.array([0.3, 0.1, 0.6])) == pytest.approx([0.75, 0.25])
    assert fewer.said() == ["law -> left out; the others share its weight"]
    assert fewer.info() == {"domains": {"web": {"web": 1.0}, "code": {"code": 1.0}, "law": {}}, "new": {}}
    # Where nothing is left to be in proportion to, tokens are.
    assert fewer.divided(np.array([0.0, 0.0, 1.0])) == pytest.approx([0.75, 0.25])


def test_a_new_domain_gets_its_share_by_tokens() -> None:
    tokens = {"law": 25.0, "code": 35.0, "web_a": 30.0, "web_b": 10.0}
    more = read_map({"": "law", "web": "web_a+web_b"}, ["web", "code"], tokens)
    assert list(more.tokens) == ["web_a", "web_b", "code", "law"]
    assert more.divided(np.array([0.4, 0.6])) == pytest.approx([0.225, 0.075, 0.45, 0.25])
    assert more.said()[-1] == "law: new, 0.25 of the whole (by tokens)"
    assert more.info()["new"] == {"law": 0.25}
    # Its sequences are none of the schedule's.
    assert more.gathered(np.array([3.0, 1.0, 2.0, 4.0]), np.ones(2)) == pytest.approx([4, 2])


def test_a_new_domain_may_have_the_name_of_one_that_is_left_out() -> None:
    other = read_map({"law": "", "": "law"}, ["web", "law"], {"web": 3, "law": 1})
    assert other.divided(np.array([0.1, 0.9])) == pytest.approx([0.75, 0.25])


def test_renaming_in_a_circle() -> None:
    weights_M = np.array([0.7, 0.1, 0.2])
    circle = read_map({"a": "b", "b": "a"}, ["a", "b", "c"], {"a": 1, "b": 5, "c": 9})
    assert list(circle.tokens) == ["b", "a", "c"]
    assert circle.only_renames
    assert circle.divided(weights_M) is weights_M
    same = read_map(None, ["a", "b"], {"b": 1, "a": 1})
    assert (list(same.tokens), same.said()) == (["a", "b"], [])


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"c++": "c+++c"}, {"c++": ("c++", "c"), "a=b": ("a=b",)}),  # a domain's name may hold + and =
        ({"a": "b=c", "c++": "a=b+c++"}, {"c++": ("a=b", "c++"), "a=b": ("c",)}),
        ({"c++": "c", "a=b=": ""}, {"c++": ("c",), "a=b": ()}),
        ({"": "c", "=a=b": "", "a": "b="}, {"c++": ("c++",), "a=b": ()}),  # as two --map =NEW are stored
    ],
)
def test_names_may_hold_the_signs(given: dict[str, str], parts: dict[str, tuple[str, ...]]) -> None:
    used = {name for each in parts.values() for name in each} | ({"c", "a=b"} if "" in given else set())
    assert read_map(given, ["c++", "a=b"], dict.fromkeys(sorted(used), 1.0)).parts == parts


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"wob": "web"},
            "--map wob=web: the schedule has web, code; the corpus has web_a, web_b, code, law; give OLD=NEW, OLD=ONE",
        ),
        ({"web": "web_a+web_z"}, "--map web=web_a+web_z: the schedule has"),
        ({"web": "web_a+"}, "--map web=web_a+: the schedule has"),
        ({"web": "web_a++web_b"}, "--map web=web_a++web_b: the schedule has"),
        ({"": ""}, "--map =: the schedule has"),
        ({"": "lew"}, "--map =lew: the schedule has"),
        (
            {"web": "web_a", "web=web_b": ""},
            "--map names web twice; map it once, to several domains with --map web=ONE+OTHER",
        ),
        ({"web": "web_a+web_a"}, "--map makes web_a of the corpus a part of web twice"),
        ({"web": "web_a+web_b", "code": "web_b"}, "--map makes web_b of the corpus a part of both web and code"),
        ({"web": "web_a+code"}, "--map makes code of the corpus a part of both web and code"),
        ({"": "code"}, "--map =code: it is not new, but the schedule's code; leave one out, as in --map code="),
        ({"web": "law", "": "law"}, "--map =law: it is not new, but the schedule's web"),
        ({"": "law+law"}, "--map =law is given twice"),
    ],
)
def test_maps_that_contradict_themselves(given: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_map(given, ["web", "code"], dict.fromkeys(["web_a", "web_b", "code", "law"], 1.0))
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_a_map_that_leaves_nothing() -> None:
    with pytest.raises(UsageError, match="leaves out every domain"):
        read_map({"a": "", "": "b"}, ["a"], {"b": 1})


def test_names_that_can_be_cut_in_two_ways() -> None:
    with pytest.raises(UsageError, match=r"--map a=b\+c: this can be cut in two ways; rename a domain"):
        read_map({"a": "b+c"}, ["a"], {"b": 1, "c": 1, "b+c": 1})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            None,
            "only in the schedule: web; only in the corpus: law, web_a, web_b; rename with --map web=law, split with --map "
            "web=web_a+web_b, leave out with --map web=, add with --map =law, or give the corpus it was learned on with --data",
        ),
        (SPLIT | {"code": "code"}, "only in the schedule: none; only in the corpus: law; add with --map =law, or"),
        ({"": "law+web_a+web_b"}, "only in the schedule: web; only in the corpus: none; leave out with --map web=, or"),
    ],
)
def test_domains_without_a_counterpart_are_named_with_the_ways_out(given: dict[str, str] | None, says: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        read_map(given, ["web", "code"], dict.fromkeys(["web_a", "web_b", "code", "law"], 1.0))
    assert says in str(caught.value)


def test_weights_stay_on_the_simplex_whatever_the_map() -> None:
    generator = np.random.default_rng(1)
    for _ in range(200):
        old, new = ([f"{side}{n}" for n in range(generator.integers(1, 6))] for side in "mk")
        parts: dict[str, tuple[str, ...]] = dict.fromkeys(old, ())
        for name in new:
            owner = str(generator.choice(old))
            if generator.random() < 0.8:
                parts[owner] = (*parts[owner], name)
        if not any(parts.values()):
            continue
        domain_map = DomainMap(parts, {name: float(generator.integers(1, 99)) for name in new})
        weights_SM = generator.dirichlet(np.ones(len(old)), 4) * (generator.random((4, len(old))) < 0.7)
        weights_SM = np.where(weights_SM.sum(axis=1, keepdims=True) > 0, weights_SM, 1.0)
        weights_SK = domain_map.divided(weights_SM / weights_SM.sum(axis=1, keepdims=True))
        assert (weights_SK >= 0).all()
        assert np.allclose(weights_SK.sum(axis=1), 1)
