"""The gate of a provider: scenarios in virtual time, and the rules that hold whatever the provider does."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchray.errors import ModelAPIError
from batchray.models.gate import Caller
from batchray.models.provider_errors import TransientError, UnreachableError
from tests.builders.providers import BrokenAnswerError, VirtualProvider
from tests.builders.virtual_time import in_virtual_time


def refusal(wait_s: float | None = None) -> TransientError:
    return TransientError("rate_limited", "slow down", 429, wait_s)


def refused_key() -> ModelAPIError:
    return ModelAPIError("authentication_error", "local: status 401: no such key", "local")


AWAY = {
    "refused": UnreachableError("connection_error", "Connect call failed"),
    "reset": TransientError("connection_error", "Server disconnected"),
    "503": TransientError("server_error", "no healthy upstream", 503),
}


# --- a provider that asks to wait ------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_key_with_ten_requests_a_minute_loses_none_of_sixty_requests_of_two_steps() -> None:
    admitted: dict[int, int] = defaultdict(int)

    def answer(now: float, caller: int) -> Exception | float:
        admitted[int(now // 60)] += 1
        return 0.5 if admitted[int(now // 60)] <= 10 else refusal(60)

    provider = VirtualProvider(answer)

    async def two_steps(caller: int) -> None:
        await provider.call(caller, deadline_s=30)
        await provider.call(caller, deadline_s=30)

    await asyncio.gather(*map(two_steps, range(60)))
    assert len(provider.arrivals) <= 1.6 * 120
    assert asyncio.get_running_loop().time() <= 13 * 60  # the key allows twelve minutes' worth


@in_virtual_time
async def test_a_retry_after_beyond_the_deadline_burns_nothing() -> None:
    provider = VirtualProvider(lambda now, _: refusal(600 - now) if now < 600 else 0.1)
    assert all(isinstance(end, float) for end in await provider.calls(2000, deadline_s=30))
    assert sum(at < 600 for at, _ in provider.arrivals) <= 4


@in_virtual_time
async def test_one_refusal_among_answers_delays_only_its_own_request() -> None:
    refused: set[int] = set()

    def answer(now: float, caller: int) -> Exception | float:
        if caller == 50 and caller not in refused:
            refused.add(caller)
            return refusal(60)
        return 0.2

    provider = VirtualProvider(answer)
    calls = asyncio.ensure_future(provider.calls(100))
    await asyncio.sleep(10)
    assert provider.gate.status("local") is None  # the driver would start nothing new
    ends = [end for end in await calls if isinstance(end, float)]
    assert len(ends) == 100
    assert ends.pop(50) >= 60
    assert max(ends) < 3


@in_virtual_time
async def test_repeated_refusals_halve_the_calls_in_flight() -> None:
    def answer(now: float, caller: int) -> Exception | float:
        return refusal() if provider.n_in_flight > 20 else 0.1

    provider = VirtualProvider(answer)
    assert all(isinstance(end, float) for end in await provider.calls(1000))
    assert len(provider.arrivals) < 1000 + 980 + 100  # the first answer has let all of them start


@in_virtual_time
async def test_waits_of_a_millisecond_are_no_reason_to_call_all_the_time() -> None:
    provider = VirtualProvider(lambda now, _: refusal(0.001) if 1 <= now < 61 else 0.5)
    await provider.calls(20)
    await asyncio.sleep(1)
    assert all(isinstance(end, float) for end in await provider.calls(20))
    assert sum(1 <= at < 61 for at, _ in provider.arrivals) <= 20 + 2 * 60


@in_virtual_time
async def test_one_call_that_is_always_refused_for_a_millisecond_is_no_busy_loop() -> None:
    provider = VirtualProvider(lambda now, caller: refusal(0.001) if not caller and now < 20 else 0.01)

    async def many(caller: int) -> None:
        for _ in range(1000):
            await provider.call(caller)

    await asyncio.gather(provider.call(0), many(1), many(2))
    assert sum(caller == 0 for _, caller in provider.arrivals) <= 1 + 20 / 0.1


@in_virtual_time
async def test_refusals_without_an_answer_between_end_after_the_retries() -> None:
    provider = VirtualProvider(lambda now, _: refusal(), max_retries=3)
    error = (await provider.calls(1))[0]
    assert isinstance(error, ModelAPIError)
    assert (error.type, error.shared_by, len(provider.arrivals)) == ("rate_limited", "local", 4)


# --- a provider that is away -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", AWAY)
@pytest.mark.parametrize("outage_s", [20, 90, 300])
@in_virtual_time
async def test_an_outage_loses_no_request_and_is_tried_by_few_calls(outage_s: float, kind: str) -> None:
    def answer(now: float, caller: int) -> Exception | float:
        return AWAY[kind] if 1 <= now < 1 + outage_s else 0.5

    provider = VirtualProvider(answer)

    async def steps(caller: int) -> float:
        await provider.call(caller, deadline_s=10)
        await asyncio.sleep(1 - 0.5 * (caller % 2))  # half of them find it away with a call in flight
        return await provider.call(caller, deadline_s=10)

    ends = await asyncio.gather(*map(steps, range(200)))
    during = sorted(at for at, _ in provider.arrivals if 1 <= at < 1 + outage_s)
    assert len(during) <= 200 + outage_s / 3
    assert max(ends) < 1 + outage_s + 8  # at most one backoff later, and spread over a moment
    assert provider.changes[-1] is False


@in_virtual_time
async def test_an_outage_that_begins_in_the_middle_of_answers_loses_no_request() -> None:
    def answer(now: float, caller: int) -> Exception | float:
        if now < 1:
            return BrokenAnswerError("connection_error", "the answer breaks off")
        return AWAY["503"] if now < 301 else 0.5

    provider = VirtualProvider(answer)
    ends = await provider.calls(3)
    assert all(isinstance(end, float) for end in ends)


@in_virtual_time
async def test_after_an_outage_the_calls_do_not_start_at_the_same_moment() -> None:
    provider = VirtualProvider(lambda now, _: AWAY["refused"] if now < 5 else 0.5)
    await provider.calls(200)
    after = [at for at, _ in provider.arrivals if at >= 5]
    assert max(map(after.count, after)) <= 20
    assert max(after) - min(after) < 0.3


@in_virtual_time
async def test_one_request_that_always_fails_stops_no_other() -> None:
    provider = VirtualProvider(lambda now, caller: TransientError("server_error", "", 500) if caller == 7 else 0.1)
    ends = await provider.calls(50)
    error = ends.pop(7)
    assert isinstance(error, ModelAPIError)
    assert error.type == "server_error"
    assert sum(caller == 7 for _, caller in provider.arrivals) == 9
    assert max(end for end in ends if isinstance(end, float)) < 2
    assert len(provider.arrivals) == 49 + 9


@in_virtual_time
async def test_a_request_that_crashes_its_server_ends_at_last() -> None:
    up_at = 0.0

    def answer(now: float, caller: int) -> Exception | float:
        nonlocal up_at
        if now < up_at:
            return AWAY["refused"]
        if caller == 0:
            up_at = now + 5
            return AWAY["reset"]
        return 0.1

    provider = VirtualProvider(answer)

    async def many_steps(caller: int) -> None:
        for _ in range(30 if caller else 1):
            await provider.call(caller)
            await asyncio.sleep(2)

    ends = await asyncio.gather(*map(many_steps, range(4)), return_exceptions=True)
    assert isinstance(ends[0], ModelAPIError)
    assert ends[1:] == [None, None, None]


@in_virtual_time
async def test_a_call_waits_for_its_provider_as_long_as_the_limit_allows() -> None:
    provider = VirtualProvider(lambda now, _: AWAY["refused"], max_wait_s=60)
    ends = await provider.calls(20)
    assert all(isinstance(end, ModelAPIError) and end.shared_by == "local" for end in ends)
    assert "provider_patience_s" in str(ends[0])
    assert 50 <= asyncio.get_running_loop().time() <= 61


@in_virtual_time
async def test_a_wait_longer_than_the_limit_ends_at_once() -> None:
    provider = VirtualProvider(lambda now, _: refusal(3600), max_wait_s=60)
    assert all(isinstance(end, ModelAPIError) for end in await provider.calls(20))
    assert asyncio.get_running_loop().time() < 1
    assert len(provider.arrivals) <= 2


@in_virtual_time
async def test_a_provider_that_hangs_is_tried_by_more_calls_after_a_while() -> None:
    provider = VirtualProvider(lambda now, caller: AWAY["503"] if now < 1 else 30 if caller % 2 else 0.1)
    provider_ends = await provider.calls(100)
    assert all(isinstance(end, float) for end in provider_ends)


@in_virtual_time
async def test_a_provider_that_is_shut_again_and_again_is_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider = VirtualProvider(lambda now, _: refusal(5) if now % 10 < 5 else 0.1)
    for _ in range(5):
        await provider.calls(3)
        await asyncio.sleep(10 - asyncio.get_running_loop().time() % 10)
    assert caplog.messages == ["provider local takes no calls: status 429: slow down"]


# --- before the first answer -----------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_thousand_first_calls_start_within_a_quarter_of_a_second() -> None:
    provider = VirtualProvider(lambda now, _: 1.0)
    await provider.calls(1000)
    assert provider.arrivals[-1][0] <= 0.25
    assert len(provider.arrivals) == 1000


@in_virtual_time
async def test_the_first_answer_lets_all_calls_start() -> None:
    provider = VirtualProvider(lambda now, _: 1.0)
    await provider.calls(1000)
    assert provider.changes == []
    assert sum(at <= 0.006 for at, _ in provider.arrivals) == 1000  # the answer takes 5 ms


@in_virtual_time
async def test_a_wrong_key_costs_a_few_calls_until_twenty_have_failed() -> None:
    provider = VirtualProvider(lambda now, _: refused_key())
    calls = [asyncio.ensure_future(provider.call(i)) for i in range(2000)]
    while sum(call.done() for call in calls) < 20:
        await asyncio.sleep(0.1)
    assert asyncio.get_running_loop().time() < 5
    assert len(provider.arrivals) <= 21
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("failure", [AWAY["503"], AWAY["reset"], TransientError("server_error", "", 500), refusal()])
@in_virtual_time
async def test_a_provider_that_never_answers_gets_eight_calls_in_two_minutes(failure: Exception) -> None:
    provider = VirtualProvider(lambda now, _: failure)
    calls = [asyncio.ensure_future(provider.call(i)) for i in range(200)]
    await asyncio.sleep(120)
    assert len(provider.arrivals) <= 8
    wait = provider.gate.status("local")
    assert wait is not None
    assert (wait.has_answered, wait.n_waiting) == (False, 200 - sum(call.done() for call in calls))
    assert wait.since_s == pytest.approx(120, abs=1)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


# --- rules -----------------------------------------------------------------------------------------------------------

FAULTS = st.sampled_from(["fine", "429", "429 told", "refused", "reset", "503", "500", "slow"])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(FAULTS, st.floats(0.1, 40)), max_size=8), st.integers(1, 40), st.integers(0, 2**32))
def test_every_call_ends_and_none_comes_before_its_wait_ends(
    weather: list[tuple[str, float]], n_callers: int, seed: int
) -> None:
    told: dict[int, float] = {}
    early: list[int] = []

    def answer(now: float, caller: int) -> Exception | float:
        if now < told.get(caller, 0.0):
            early.append(caller)
        starts = itertools.accumulate((length for _, length in weather), initial=0.0)
        kind = next((kind for (kind, length), start in zip(weather, starts, strict=False) if now < start + length), "")
        if kind == "429 told":
            told[caller] = now + 7
            return refusal(7)
        if kind == "500":
            return TransientError("server_error", "", 500)
        return refusal() if kind == "429" else AWAY.get(kind, 20.0 if kind == "slow" else 0.2)

    @in_virtual_time
    async def run() -> None:
        provider = VirtualProvider(answer, max_retries=100, seed=seed)
        ends = await provider.calls(n_callers)
        assert all(isinstance(end, float) for end in ends)
        assert provider.n_in_flight == 0
        assert await provider.call(0) > 0
        assert max(end for end in ends if isinstance(end, float)) < sum(length for _, length in weather) + 120

    run()
    assert early == []


@in_virtual_time
async def test_a_canceled_wait_leaves_its_place_to_others() -> None:
    provider = VirtualProvider(lambda now, _: refusal(5) if now < 5 else 0.1)
    calls = [asyncio.ensure_future(provider.call(i)) for i in range(10)]
    await asyncio.sleep(1)
    for call in calls[:9]:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert calls[9].result() > 5


@in_virtual_time
async def test_a_call_that_is_canceled_as_it_starts_is_not_counted_as_in_flight() -> None:
    provider = VirtualProvider(lambda now, _: 0.1)
    numbers = [provider.gate.try_begin() for _ in range(2)]
    waiting = asyncio.ensure_future(provider.gate.begin(Caller()))
    await asyncio.sleep(0)
    provider.gate.answered(numbers[0])
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    for _ in numbers:
        provider.gate.end(is_success=True)
    assert provider.gate.status("local") is None
    assert await provider.call(1) == pytest.approx(0.105)
