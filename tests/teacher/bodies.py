"""Error bodies in the forms of public servers: (status, body)."""

LONG = "This model's maximum context length is 4096 tokens. However, you requested 4472 tokens."
FILTERED = (
    "The response was filtered due to the prompt triggering the content management policy. "
    "Please modify your prompt and retry."
)

ABOUT_THE_PROMPT: list[tuple[int, object]] = [
    # OpenAI, and vLLM in its old and new form
    (400, {"error": {"message": LONG, "type": "x", "code": "context_length_exceeded"}}),
    (400, {"object": "error", "message": LONG, "type": "BadRequestError", "code": 400}),
    (400, {"error": {"message": LONG, "type": "BadRequestError", "param": None, "code": 400}}),
    (400, {"error": {"message": "m", "type": "image_generation", "code": "moderation_blocked"}}),
    # SGLang, llama.cpp, TGI
    (
        400,
        {
            "object": "error",
            "message": "The input (5000 tokens) is longer than the model's context",
        },
    ),
    (
        400,
        {
            "error": {
                "code": 400,
                "message": "the request exceeds the available context size",
                "type": "exceed_context_size_error",
            }
        },
    ),
    (422, {"error": "`inputs` tokens + `max_new_tokens` must be <= 4096", "error_type": "valid"}),
    # Together, Anthropic, Gemini (alone and in a list)
    (422, {"error": {"message": "Input tokens exceed the limit", "type": "invalid_request_error"}}),
    (400, {"type": "error", "error": {"type": "invalid", "message": "prompt is too long: 2 > 1"}}),
    (413, {"type": "error", "error": {"type": "request_too_large", "message": "Too large"}}),
    (400, [{"error": {"code": 400, "message": "The input token count (9) exceeds the maximum"}}]),
    (400, {"error": {"code": 400, "message": "blocked by SAFETY", "status": "PROHIBITED_CONTENT"}}),
    # filters of Azure, OpenRouter, DeepSeek, Qwen, Zhipu, Bedrock
    (
        400,
        {
            "error": {
                "code": "400",
                "message": "m",
                "innererror": {"code": "ResponsibleAIPolicyViolation"},
            }
        },
    ),
    (400, {"error": {"message": FILTERED, "code": "content_filter", "status": 400}}),
    (403, {"error": {"code": 403, "message": "flagged", "metadata": {"reasons": ["violence"]}}}),
    (400, {"error": {"message": "Content Exists Risk", "code": "invalid_request_error"}}),
    (400, {"code": "DataInspectionFailed", "message": "Input data may be inappropriate."}),
    (
        400,
        {"error": {"code": "1301", "message": "系统检测到输入或生成内容可能包含不安全或敏感内容"}},
    ),
    (404, {"error": {"message": "The prompt was flagged by moderation", "code": 404}}),
]

UNCLEAR: list[tuple[int, object]] = [
    (400, {"error": {"message": "Bad request", "type": "invalid_request_error", "code": None}}),
    (403, {}),  # a firewall
    (422, {"detail": [{"loc": ["body", "messages"], "msg": "field required", "type": "missing"}]}),
    (400, {"message": "invalid message role"}),
    (418, {}),
]

ABOUT_THE_RUN: list[tuple[int, object]] = [
    (401, {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}),
    (402, {"error": {"message": "Insufficient Balance", "code": "invalid_request_error"}}),
    (404, {"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}),
    (404, {"detail": "Not Found"}),
    (400, {"error": {"message": "Model Not Exist", "type": "invalid_request_error"}}),
    (400, {"error": {"message": "m is not a valid model ID", "code": 400}}),
    (400, {"type": "error", "error": {"type": "x", "message": "Your credit balance is too low"}}),
    (400, [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key."}}]),
    (403, {"error": {"code": "unsupported_country_region_territory", "message": "Country"}}),
    (400, {"code": "Arrearage", "message": "Access denied, account in arrears"}),
    (403, {"error": {"status": "PERMISSION_DENIED", "message": "m"}}),
    (307, {}),
    (405, {}),
]
