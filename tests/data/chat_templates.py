"""Small chat templates of the forms that public models have, with their control tokens."""

from dataclasses import dataclass, field
from typing import Any

_LOOP = "{% for m in messages %}"


@dataclass(frozen=True)
class Family:
    """A template, its special and its other added tokens, its eos and its arguments."""

    template: str
    special: tuple[str, ...] = ()
    eos: str = "<|im_end|>"
    added: tuple[str, ...] = ()
    bos: str | None = None
    system: bool = True
    arguments: dict[str, Any] = field(default_factory=dict)
    end: str = ""
    """The end token of a turn, if it is not the eos."""


def _turns(turn: str, header: str, before: str = "") -> str:
    ask = "{% if add_generation_prompt %}" + header + "{% endif %}"
    return before + _LOOP + turn + "{% endfor %}" + ask


_TAGGED = "<|{{ m.role }}|>\n{{ m.content }}"
_CHATML = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
_ROUNDS = (
    "{{ bos_token }}"
    + _LOOP
    + "{% if m.role == 'user' %}{{ '[INST]' + pre + m.content + post + '[/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ lead + m.content|trim + tail + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
_SET = "{% set pre, post, lead, tail = PLACES %}"
# Qwen3's: thoughts of earlier turns go, the last answer gets an empty thought.
_QWEN3 = (
    "{% set ns = namespace(last=messages|length - 1) %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' and loop.index0 > 0 %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for m in messages %}{% if m.role != 'assistant' %}" + _CHATML + "{% else %}"
    "{% set content, thought = m.content, '' %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if loop.last or (thought and loop.index0 > ns.last) %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{% else %}{{ content }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
)
QWEN3 = Family(
    _QWEN3
    + "{% if enable_thinking is defined and enable_thinking is false %}"
    + "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
    added=("<think>", "</think>"),
)
QWEN3_THINKING = Family(_QWEN3 + "{{ '<think>\n' }}{% endif %}", added=("<think>", "</think>"))
R1 = Family(
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}{% endif %}"
    "{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% endif %}"
    "{% if m.role == 'assistant' %}"
    "{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
    ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"),
    "<｜end▁of▁sentence｜>",
    added=("<think>", "</think>"),
    bos="<｜begin▁of▁sentence｜>",
)
SMOLLM3 = Family(
    "{% set mode = '/think' if enable_thinking is not defined or enable_thinking "
    "else '/no_think' %}"
    "<|im_start|>system\nReasoning Mode: {{ mode }}, {{ strftime_now('%d %B %Y') }}<|im_end|>\n"
    "{% for m in messages %}{% if m.role == 'user' %}"
    + _CHATML
    + "{% elif m.role == 'assistant' %}"
    "{% generation %}"
    "{% if mode == '/think' %}{{ '<|im_start|>assistant\n' + m.content.lstrip('\n') }}"
    "{% else %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n' + m.content.lstrip('\n') }}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if mode == '/no_think' %}{{ '<think>\n\n</think>\n' }}{% endif %}{% endif %}",
    added=("<think>", "</think>"),
    system=False,
)
GLM45 = Family(
    "[gMASK]<sop>{% for m in messages %}"
    "{% if m.role == 'assistant' %}<|assistant|>\n<think></think>\n{{ m.content.strip() }}"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '\n<think></think>' }}{% endif %}{% endif %}",
    ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>"),
    "<|endoftext|>",
    added=("<think>", "</think>"),
)
DEEPSEEK_V31 = Family(
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<｜Assistant｜></think>' + m.content + '<｜end▁of▁sentence｜>' }}"
    "{% else %}{{ '<｜User｜>' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}"
    "{% if thinking is defined and thinking %}{{ '<think>' }}{% else %}{{ '</think>' }}{% endif %}"
    "{% endif %}",
    R1.special,
    R1.eos,
    added=("<think>", "</think>"),
    bos=R1.bos,
)
HARMONY = Family(
    "<|start|>system<|message|>Current date: {{ strftime_now('%Y-%m-%d') }}\n"
    "Reasoning: {{ reasoning_effort or 'medium' }}<|end|>"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"),
    "<|return|>",
)
MAGISTRAL = Family(
    "{{ bos_token }}[SYSTEM_PROMPT]Think first: [THINK]thoughts[/THINK]answer.[/SYSTEM_PROMPT]"
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", "[THINK]", "[/THINK]", "</s>"),
    "</s>",
    bos="<|bos|>",
    system=False,
)

PLAIN: dict[str, Family] = {
    "chatml": Family(_turns(_CHATML, "<|im_start|>assistant\n")),
    "qwen2.5": Family(
        _turns(
            _CHATML,
            "<|im_start|>assistant\n",
            "{% if messages[0].role != 'system' %}"
            "<|im_start|>system\nBe Qwen.<|im_end|>\n{% endif %}",
        )
    ),
    "llama3": Family(
        _turns(
            "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>",
            "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
            "{{ bos_token }}{% set d = date_string or strftime_now('%d %b %Y') %}"
            "{{ '<|start_header_id|>system<|end_header_id|>\n\n' + d + '<|eot_id|>' }}",
        ),
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>"),
        "<|eot_id|>",
        bos="<|begin_of_text|>",
    ),
    "llama2": Family(
        _SET.replace("PLACES", "' ', ' ', ' ', ' '") + _ROUNDS, ("</s>",), "</s>", system=False
    ),
    "mistral v1": Family(
        _SET.replace("PLACES", "' ', ' ', ' ', ''") + _ROUNDS, ("</s>",), "</s>", system=False
    ),
    "mistral v3": Family(
        _SET.replace("PLACES", "' ', '', ' ', ''") + _ROUNDS,
        ("</s>", "[INST]", "[/INST]"),
        "</s>",
        system=False,
    ),
    "mistral v7": Family(
        "{{ bos_token }}" + _LOOP + "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{% elif m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
        ("</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        "</s>",
        bos="<|bos|>",
    ),
    "deepseek v2": Family(
        "{{ bos_token }}" + _LOOP + "{% if m.role == 'user' %}{{ 'User: ' + m.content + '\n\n' }}"
        "{% elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content + eos_token }}"
        "{% else %}{{ m.content + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
        R1.special,
        R1.eos,
        bos=R1.bos,
    ),
    "phi3": Family(
        _turns(_TAGGED + "<|end|>\n", "<|assistant|>\n"),
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        "<|endoftext|>",
        end="<|end|>",
    ),
    "phi4": Family(
        _turns(
            "<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>",
            "<|im_start|>assistant<|im_sep|>",
        ),
        ("<|im_sep|>",),
    ),
    "gemma": Family(
        "{{ bos_token }}{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}" + _LOOP + ""
        "{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<start_of_turn>", "<end_of_turn>", "<bos>"),
        "<|endoftext|>",
        bos="<bos>",
        system=False,
        end="<end_of_turn>",
    ),
    "gemma3": Family(
        "{{ bos_token }}{% set first = messages[0].content + '\n\n' "
        "if messages[0].role == 'system' else '' %}"
        "{% set rest = messages[1:] if first else messages %}{% for m in rest %}"
        "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
        "{{ (first if loop.first else '') + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<start_of_turn>", "<end_of_turn>", "<bos>"),
        "<|endoftext|>",
        bos="<bos>",
        end="<end_of_turn>",
    ),
    "granite": Family(
        _turns(
            "<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|endoftext|>\n",
            "<|start_of_role|>assistant<|end_of_role|>",
        ),
        ("<|start_of_role|>", "<|end_of_role|>"),
        "<|endoftext|>",
    ),
    "olmo": Family(
        "{{ eos_token }}" + _LOOP + "{% if m.role == 'assistant' %}"
        "{{ '<|assistant|>\n' + m.content + eos_token }}{% if not loop.last %}{{ '\n' }}{% endif %}"
        "{% else %}{{ '<|' + m.role + '|>\n' + m.content + '\n' }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
        "{% endfor %}",
        eos="<|endoftext|>",
    ),
    "command-r": Family(
        "{{ bos_token }}" + _LOOP + "<|START_OF_TURN_TOKEN|>"
        "{% if m.role == 'assistant' %}<|CHATBOT_TOKEN|>{{ m.content.strip() }}"
        "{% else %}<|{{ m.role|upper }}_TOKEN|>{{ m.content.strip() }}{% endif %}"
        "<|END_OF_TURN_TOKEN|>{% endfor %}"
        "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
        ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|USER_TOKEN|>"),
        "<|END_OF_TURN_TOKEN|>",
        bos="<|bos|>",
    ),
    "zephyr": Family(_turns(_TAGGED + "{{ eos_token }}\n", "<|assistant|>\n"), ("</s>",), "</s>"),
    "vicuna": Family(
        "{{ bos_token }}A chat. "
        + _LOOP
        + "{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
        "{% elif m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + '</s>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        ("</s>",),
        "</s>",
        system=False,
    ),
    "falcon3": Family(
        _LOOP + "<|{{ m.role }}|>\n{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
        "{% endif %}{% if not loop.last %}{{ '\n' }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}"
        "{% endfor %}",
        eos="<|endoftext|>",
    ),
    "internlm": Family(_turns(_CHATML, "<|im_start|>assistant\n", "<s>"), ("<s>", "</s>")),
    "ernie": Family(
        "{{ bos_token }}" + _LOOP + "{% if m.role == 'user' %}{{ 'User: ' + m.content + '\n' }}"
        "{% elif m.role == 'system' %}{{ m.content + '\n' }}"
        "{% else %}{{ 'Assistant: ' + m.content + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}",
        ("<|end_of_sentence|>", "<|begin_of_sentence|>"),
        "<|end_of_sentence|>",
        bos="<|begin_of_sentence|>",
    ),
    "glm4": Family(
        "[gMASK]<sop>" + _LOOP + "<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        GLM45.special,
        "<|endoftext|>",
    ),
    "hunyuan": Family(
        "{{ bos_token }}" + _LOOP + "{% if m.role == 'user' %}<｜hy_User｜>{{ m.content }}"
        "{% elif m.role == 'assistant' %}<｜hy_Assistant｜>{{ m.content }}<｜hy_2｜>"
        "{% else %}{{ m.content }}<｜hy_3｜>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜hy_Assistant｜>{% endif %}",
        ("<｜hy_User｜>", "<｜hy_Assistant｜>", "<｜hy_2｜>", "<｜hy_3｜>"),
        "<｜hy_2｜>",
        bos="<|bos|>",
    ),
    "exaone": Family(
        _LOOP + "[|{{ m.role }}|]{{ m.content }}"
        "{% if m.role == 'user' %}{{ '\n' }}{% else %}[|endofturn|]{{ '\n' }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}[|assistant|]{% endif %}",
        ("[|endofturn|]",),
        "[|endofturn|]",
    ),
    "apertus": Family(
        "{{ bos_token }}" + _LOOP + "<|{{ m.role }}_start|>{{ m.content }}<|{{ m.role }}_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant_start|>{% endif %}",
        ("<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>"),
        "<|assistant_end|>",
        bos="<|bos|>",
    ),
    "gpt-oss": HARMONY,
    "magistral": MAGISTRAL,
    "glm4.5": GLM45,
    "deepseek v3.1": DEEPSEEK_V31,
    "qwen3, an empty thought": QWEN3,
}

THINKING: dict[str, Family] = {
    "qwen3": QWEN3,
    "smollm3": SMOLLM3,
    "glm4.5": GLM45,
}
"""Templates with an argument that keeps the student from thinking: enable_thinking."""

EMPTY = Family(
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "<|im_assistant|>assistant<|im_middle|><think></think>{{ m.content }}<|im_end|>"
    "{% else %}<|im_user|>{{ m.role }}<|im_middle|>{{ m.content }}<|im_end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}",
    ("<|im_assistant|>", "<|im_middle|>", "<|im_user|>"),
    added=("<think>", "</think>"),
)
"""A template like Kimi K2 Thinking's: no argument, and an empty thought before every answer."""

OPEN: dict[str, tuple[Family, str]] = {
    "r1": (R1, "\n</think>\n\n"),
    "qwen3-thinking": (QWEN3_THINKING, "\n</think>\n\n"),
    "exaone-deep": (
        Family(
            _turns(
                "[|{{ m.role }}|]{{ m.content.split('</thought>')|last }}[|endofturn|]\n",
                "[|assistant|]<thought>\n",
            ),
            ("[|endofturn|]",),
            "[|endofturn|]",
        ),
        "\n</thought>\n\n",
    ),
    "magistral, opened": (
        Family(
            "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
            "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}[THINK]{% endif %}",
            MAGISTRAL.special,
            "</s>",
            system=False,
        ),
        "[/THINK]",
    ),
    "glm-4.7": (
        Family(
            "{% for m in messages %}{% if m.role == 'assistant' %}"
            "<|assistant|></think>{{ m.content.strip() }}"
            "{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>"
            "{{ '</think>' if quick else '<think>' }}{% endif %}",
            GLM45.special,
            "<|endoftext|>",
            added=("<think>", "</think>"),
        ),
        "</think>",
    ),
    "nemotron 3": (
        Family(
            "{% for m in messages %}{% if m.role == 'assistant' %}"
            "{{ '<|im_start|>assistant\n<think></think>' + m.content + '<|im_end|>\n' }}"
            "{% else %}" + _CHATML + "{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
            added=("<think>", "</think>"),
        ),
        "</think>",
    ),
    "command a": (
        Family(
            "{% for m in messages %}<|START_OF_TURN_TOKEN|>{% if m.role == 'assistant' %}"
            "<|CHATBOT_TOKEN|><|START_TEXT|>{{ m.content }}<|END_TEXT|>"
            "{% else %}<|USER_TOKEN|>{{ m.content }}{% endif %}<|END_OF_TURN_TOKEN|>{% endfor %}"
            "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
            "<|START_THINKING|>{% endif %}",
            (
                *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"),
                *("<|USER_TOKEN|>", "<|START_TEXT|>", "<|END_TEXT|>"),
                *("<|START_THINKING|>", "<|END_THINKING|>"),
            ),
            "<|END_OF_TURN_TOKEN|>",
            system=False,
        ),
        "<|END_THINKING|>",
    ),
    "seed-oss": (
        Family(
            _turns(
                "<seed:bos>{{ m.role }}\n{{ m.content }}<seed:eos>",
                "<seed:bos>assistant\n<seed:think>",
            ),
            ("<seed:bos>", "<seed:eos>"),
            "<seed:eos>",
            added=("<seed:think>", "</seed:think>"),
        ),
        "\n\n</seed:think>\n\n",
    ),
}
"""Templates whose prompt ends in an open thought, and what closes it."""
