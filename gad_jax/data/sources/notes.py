"""What a user should know about a source: as which format it was read, and what was not used."""

import re
from collections import Counter
from collections.abc import Iterable

from gad_jax.base.redaction import printable
from gad_jax.data.sources.fields import Columns
from gad_jax.data.sources.rows import FINISHED, UNFINISHED, fold_reason, is_blank, shortened

HARMLESS = frozenset(
    re.findall(
        r"\w+",
        """
    id ids idx index uuid uid guid key sample row_id question_id prompt_id conversation_id
    conversation_hash message_id parent_id custom_id request_id response_id dataset_id hash
    source sources src dataset dataset_name subset split task task_id task_name task_type
    category categories subcategory subject topic topics domain domains type kind tag tags label
    labels labeler labels_info metadata meta extra info note notes url urls link license licence
    author creator user_id annotator annotator_id hashed_ip header state country country_name
    language lang locale languages script redacted toxic toxicity nsfw flagged moderation
    openai_moderation detoxify_moderation llama_guard_2 safety pii quality quality_score score
    scores score_chosen score_rejected chosen_score rejected_score chosen_rating rejected_rating
    rating ratings rank ranks reward rewards reward_model instruct_reward difficulty level
    complexity length lengths num_tokens n_tokens token_count tokens input_length output_length
    conversation_tokens prompt_tokens completion_tokens response_tokens num_turns turn n_turns
    turn_identifier timestamp time date created created_at updated_at year version revision
    model models model_name model_id engine teacher generator generation_model chosen_model
    rejected_model gen_input_configs gen_response_configs parameters usage temperature top_p
    finish_reason stop_reason finishreason system_fingerprint object service_tier logprobs
    rejected rejected_response rejected_responses winner judge judge_name margin
    intent knowledge task_category other_task_category min_neighbor_distance repeat_count
    min_similar_uuid pre_query_template post_query_template difficulty_generator
    quality_generator reward_model_name cluster cluster_id embedding embeddings repetition
    method url_path status status_code error latency duration cost
        """,
    )
) | {"", "unnamed:_0"}
"""Columns that change neither prompt nor answer; others that are not used are named."""

NAMED = "named columns"
_OWN = ("messages", "content", "instruction", "prompt", "turns", "text", "input", "context")
_SHOWN = 12
_KNOWN = {*FINISHED, *UNFINISHED}


class Notes:
    """Collects what is to be said about the rows of a source."""

    def __init__(self) -> None:
        self._formats: dict[str, dict[str, None]] = {}
        self._unused: dict[str, None] = {}
        self._reasons: Counter[str] = Counter()

    def add(self, label: str, parts: Iterable[str], unused: Iterable[str]) -> None:
        """Notes a row: its format, the columns of its prompt, and those that are not used.

        The format is empty for the project's own.
        """
        self._formats.setdefault(label, {}).update(dict.fromkeys(parts))
        self._unused.update(dict.fromkeys(unused))

    def add_reason(self, reason: str) -> None:
        """Notes a finish reason, if it is not a known one."""
        if fold_reason(reason) not in _KNOWN:
            self._reasons[reason[:40]] += 1

    def lines(self, name: str) -> tuple[str, ...]:
        """Returns the sentences; none for rows in the project's own form that are all used."""
        lines = []
        for label, parts in self._formats.items():
            made = (
                f"; prompt: {', '.join(parts)}" if len(parts) > 1 or label.startswith(NAMED) else ""
            )
            lines += [f"{name}: read as {label}{made}"] if label else []
        also = [name for name in self._formats.get("", ()) if name not in _OWN]
        if also:
            lines.append(f"{name}: also in the prompt: {', '.join(also)}")
        if self._unused:
            names = [shortened(name)[1:-1] for name in self._unused]  # no control characters
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            unused = f"not used: {', '.join(names[:_SHOWN])}{more}"
            lines = [f"{lines[0]}; {unused}", *lines[1:]] if lines else [f"{name}: {unused}"]
        if self._reasons:
            found = ", ".join(f"{reason!r} ({n})" for reason, n in self._reasons.most_common(5))
            lines.append(f"{name}: unknown finish reasons, taken for finished: {found}")
        return tuple(map(printable, lines))


def unused(columns: Columns) -> list[str]:
    """Returns the columns that say something, are not used, and are not known to be harmless."""
    return [
        name
        for name, value in columns.values.items()
        if name not in columns.used
        and name not in columns.repeated
        and name not in HARMLESS
        and not is_blank(value)
    ]
