"""What a model's requests have been like: how long their texts are in tokens, how long they take. Pure.

From it follow the figures that a queue needs before a request has run: its tokens, and when to come back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

#: Bytes of UTF-8 for each token of a prompt, until it is known better; English text has about four.
BYTES_PER_TOKEN = 4.0
#: Seconds that a request holds its slot, until it is known better.
SERVICE_S = 1.0
#: Seconds between two who are told to come back, at the least.
LEAST_S = 0.01
#: How much the latest request counts; the first ones count alike.
_LATEST = 0.1
#: The default ratio counts as if so many tokens had been seen, and what was seen is halved when it is as much as this.
_ASSUMED_TOKENS, _REMEMBERED_TOKENS = 1_000.0, 100_000.0


@dataclass(frozen=True)
class Pace:
    """An average of a model's requests that were answered, the latest weighed most."""

    requests: int = 0
    service_s: float = SERVICE_S
    answer_tokens: float = 0.0
    seen_bytes: float = BYTES_PER_TOKEN * _ASSUMED_TOKENS
    seen_tokens: float = _ASSUMED_TOKENS

    def after(self, *, prompt_bytes: int, prompt_tokens: int, answer_tokens: int, seconds: float) -> Pace:
        """With one request more, that held its slot for `seconds`."""
        weight = max(_LATEST, 1 / (self.requests + 1))
        known = replace(
            self,
            requests=self.requests + 1,
            service_s=self.service_s + weight * (seconds - self.service_s),
            answer_tokens=self.answer_tokens + weight * (answer_tokens - self.answer_tokens),
        )
        if not prompt_bytes or not prompt_tokens:
            return known
        fade = 0.5 if self.seen_tokens > _REMEMBERED_TOKENS else 1.0
        return replace(
            known,
            seen_bytes=self.seen_bytes * fade + prompt_bytes,
            # No text has more tokens than bytes: what is over that is the chat template's, and not of the text.
            seen_tokens=self.seen_tokens * fade + min(prompt_tokens, prompt_bytes),
        )

    def prompt_tokens(self, size: int) -> int:
        """About how many tokens a text of `size` bytes has: never less than 1, unless it is empty."""
        return max(1, round(size * self.seen_tokens / self.seen_bytes)) if size else 0

    def cost(self, prompt_tokens: int, most_answer_tokens: int) -> float:
        """Tokens of prompt and answer that a request is expected to take, of an answer of so many at most."""
        usual = self.answer_tokens if self.requests else most_answer_tokens
        return max(1.0, prompt_tokens + min(usual, most_answer_tokens))

    # --- when to come back ---
    def appointment(self, now: float, last: float, *, slots: int, waiting: int, load_s: float) -> float:
        """When whoever is refused now should come back, on the clock of `now`; the one before was told `last`.

        One request leaves every `service_s / slots` seconds, and with it a place in the queue is free. So the first
        that is refused is told one such interval from now, or from the end of the load that still takes `load_s`, and
        each further one an interval later than the one before: they do not all come back at once. Nobody is told later
        than when all will have been served that wait now (`waiting`) or hold a slot: then there is room for all.
        """
        interval = max(LEAST_S, self.service_s / max(1, slots))
        begins = now + load_s
        return min(max(begins, last) + interval, begins + (waiting + slots) * interval)
