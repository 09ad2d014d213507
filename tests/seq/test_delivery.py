"""The queue and its bounds; a batch in which some are bad."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from storage_manager.seq import backlog as backlog_module
from storage_manager.seq.backlog import BATCH_BYTES, BATCH_EVENTS, MAX_BYTES, MAX_EVENTS, Backlog
from storage_manager.seq.delivery import REFUSALS_IN_A_ROW, Answer, Verdict, deliver

# --- The queue


def lines(count: int, size: int = 10) -> list[bytes]:
    return [str(number).encode().rjust(size) for number in range(count)]


def filled(count: int, size: int = 10, **bounds: int) -> Backlog:
    backlog = Backlog(**bounds)
    for line in lines(count, size):
        backlog.add(line)
    return backlog


def drained(backlog: Backlog) -> list[bytes]:
    found: list[bytes] = []
    while backlog:
        found += backlog.take()
    return found


def test_lines_come_out_in_their_order() -> None:
    assert drained(filled(2500)) == lines(2500)


def test_a_batch_has_a_thousand_lines_at_most() -> None:
    backlog = filled(BATCH_EVENTS + 1)
    assert (len(backlog.take()), len(backlog.take()), backlog.take()) == (1000, 1, [])


def test_a_batch_has_a_megabyte_at_most_line_ends_included() -> None:
    backlog = filled(50, 99_999)
    batch = backlog.take()
    assert sum(len(line) + 1 for line in batch) == BATCH_BYTES == 1_000_000


def test_a_line_larger_than_a_batch_goes_alone() -> None:
    backlog = filled(2, BATCH_BYTES + 1)
    assert len(backlog.take()) == 1


@pytest.mark.parametrize(("count", "size", "full"), [(999, 10, False), (1000, 10, True), (9, 100_000, False),
                                                     (10, 100_000, True)])  # fmt: skip
def test_it_knows_when_there_is_a_batch(count: int, size: int, full: bool) -> None:
    assert filled(count, size).fills_a_batch is full


def test_when_there_are_too_many_the_oldest_go_and_are_counted() -> None:
    backlog = filled(130, max_events=100)
    assert (len(backlog), backlog.dropped_count) == (100, 30)
    assert drained(backlog) == lines(130)[30:]


def test_when_they_are_too_large_the_oldest_go_and_are_counted() -> None:
    backlog = filled(130, size=10, max_bytes=1000)
    assert (len(backlog), backlog.dropped_count) == (100, 30)
    assert drained(backlog) == lines(130)[30:]


def test_what_is_given_back_is_in_front_again_and_older_than_the_rest() -> None:
    backlog = filled(1500, max_events=1500)
    batch = backlog.take()
    backlog.add(b"new")
    backlog.give_back(batch)
    assert backlog.dropped_count == 1
    assert drained(backlog) == [*lines(1500)[1:], b"new"]


def test_the_bounds_hold_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_module, "BATCH_EVENTS", 7)
    monkeypatch.setattr(backlog_module, "BATCH_BYTES", 300)
    rng = random.Random(1)
    backlog = Backlog(max_events=50, max_bytes=2000)
    added = taken = 0
    for _ in range(5000):
        if rng.random() < 0.8:
            backlog.add(b"x" * rng.randrange(200))
            added += 1
        else:
            batch = backlog.take()
            assert len(batch) <= 7 and (len(batch) < 2 or sum(len(line) + 1 for line in batch) <= 300)
            left = batch[rng.randrange(len(batch) + 1) :]
            taken += len(batch) - len(left)
            backlog.give_back(left)
        assert len(backlog) <= 50
        assert backlog._bytes == sum(map(len, backlog._lines)) <= 2000
        assert added == taken + len(backlog) + backlog.dropped_count


def test_the_bounds_are_those_of_the_documents() -> None:
    assert (MAX_EVENTS, MAX_BYTES, BATCH_EVENTS, BATCH_BYTES) == (50_000, 32 * 1024 * 1024, 1000, 1_000_000)


# --- A batch


def refusing(bad: set[bytes], seen: list[bytes], posts: list[int]) -> Callable[[list[bytes]], Answer]:
    """A server that takes all of a batch or nothing of it."""

    def post(batch: list[bytes]) -> Answer:
        posts.append(len(batch))
        if bad.intersection(batch):
            return Answer(Verdict.REFUSED, "bad")
        seen.extend(batch)
        return Answer(Verdict.ACCEPTED)

    return post


def test_a_batch_that_is_accepted_is_posted_once() -> None:
    seen: list[bytes] = []
    posts: list[int] = []
    delivery = deliver(lines(1000), refusing(set(), seen, posts))
    assert (seen, posts) == (lines(1000), [1000])
    assert (delivery.rejected, delivery.left) == ([], [])
    assert delivery.accepted is not None


@pytest.mark.parametrize("place", [0, 1, 499, 500, 998, 999])
def test_one_bad_line_costs_no_other_and_few_requests(place: int) -> None:
    batch = lines(1000)
    seen: list[bytes] = []
    posts: list[int] = []
    delivery = deliver(batch, refusing({batch[place]}, seen, posts))
    assert delivery.rejected == [batch[place]]
    assert delivery.rejected_reason == "bad"
    assert seen == batch[:place] + batch[place + 1 :]
    assert delivery.left == []
    assert len(posts) <= 21


def test_whatever_is_bad_every_good_line_arrives_in_order() -> None:
    rng = random.Random(2)
    for _ in range(300):
        batch = lines(rng.randrange(1, 200))
        bad = set(rng.sample(batch, min(len(batch), rng.randrange(REFUSALS_IN_A_ROW))))
        seen: list[bytes] = []
        delivery = deliver(batch, refusing(bad, seen, []))
        assert seen == [line for line in batch if line not in bad]
        assert delivery.rejected == [line for line in batch if line in bad]
        assert delivery.left == []


def test_any_number_of_bad_lines_is_singled_out_if_others_between_them_are_taken() -> None:
    batch = lines(400)
    seen: list[bytes] = []
    delivery = deliver(batch, refusing(set(batch[::10]), seen, []))
    assert delivery.rejected == batch[::10]
    assert len(seen) == 360
    assert delivery.left == []


def test_whenever_the_server_goes_away_every_line_is_accepted_rejected_or_left_in_order() -> None:
    rng = random.Random(3)
    for _ in range(300):
        batch = lines(rng.randrange(1, 100))
        bad = set(rng.sample(batch, rng.randrange(min(len(batch), REFUSALS_IN_A_ROW))))
        seen: list[bytes] = []
        posts: list[int] = []
        post = refusing(bad, seen, posts)
        lasts = rng.randrange(8)

        def failing(
            part: list[bytes], post: Callable[..., Answer] = post, posts: list[int] = posts, lasts: int = lasts
        ) -> Answer:
            return post(part) if len(posts) < lasts else Answer(Verdict.UNAVAILABLE, "gone")

        delivery = deliver(batch, failing)
        settled = sorted(seen + delivery.rejected)
        assert settled + delivery.left == batch
        if delivery.left:
            assert delivery.answer.verdict is Verdict.UNAVAILABLE


def test_a_server_that_refuses_everything_is_not_fed_event_by_event() -> None:
    posts: list[int] = []
    batch = lines(1000)
    delivery = deliver(batch, refusing(set(batch), [], posts))
    assert delivery.rejected == batch[:REFUSALS_IN_A_ROW]
    assert delivery.left == batch[REFUSALS_IN_A_ROW:]
    assert delivery.answer.verdict is Verdict.MISDIRECTED
    assert "bad" in delivery.answer.reason
    assert len(posts) < 40
