"""The names that the outside world relies on, each written once.

Those of OpenTelemetry's semantic conventions are constants of ours, since the package that holds them marks the
GenAI ones as deprecated while they move to a repository of their own.
"""

from __future__ import annotations

from typing import Final

# semantic conventions: HTTP server (stable), errors, GenAI (in development)
HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"
URL_PATH: Final = "url.path"
URL_SCHEME: Final = "url.scheme"
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
GEN_AI_OPERATION: Final = "gen_ai.operation.name"
GEN_AI_PROVIDER: Final = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
GEN_AI_RESPONSE_ID: Final = "gen_ai.response.id"
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
GEN_AI_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
GEN_AI_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
GEN_AI_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
GEN_AI_CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
GEN_AI_INPUT_MESSAGES: Final = "gen_ai.input.messages"
GEN_AI_OUTPUT_MESSAGES: Final = "gen_ai.output.messages"

# ours
TOKENS_INPUT: Final = "tracerouter.tokens.input"
TOKENS_OUTPUT: Final = "tracerouter.tokens.output"
COST: Final = "tracerouter.cost.amount"
COST_SOURCE: Final = "tracerouter.cost.source"
COST_BASELINE: Final = "tracerouter.cost.baseline"
LATENCY: Final = "tracerouter.latency"
ROUTE: Final = "tracerouter.route"
OUTCOME: Final = "tracerouter.outcome"
REASON: Final = "tracerouter.reason"
POLICY: Final = "tracerouter.policy"
ARM: Final = "tracerouter.policy.arm"
ATTEMPTS: Final = "tracerouter.attempts"
KEEP: Final = "tracerouter.keep"
CACHE_LAYER: Final = "tracerouter.cache.layer"
CACHE_STATUS: Final = "tracerouter.cache.status"
CACHE_KEY_HASH: Final = "tracerouter.cache.key_hash"
CACHE_AGE: Final = "tracerouter.cache.age"
CLASSIFIER: Final = "tracerouter.classifier.name"
CLASSIFIER_VERSION: Final = "tracerouter.classifier.version"
CLASSIFIER_CACHED: Final = "tracerouter.classifier.cached"
LABEL: Final = "tracerouter.label"
CONFIDENCE: Final = "tracerouter.confidence"
RISKS: Final = "tracerouter.risks"
THRESHOLD: Final = "tracerouter.threshold"
VALIDATION_STATUS: Final = "tracerouter.validation.status"
VALIDATION_FAILURES: Final = "tracerouter.validation.failures"
FALLBACK_FROM: Final = "tracerouter.fallback.from"
FALLBACK_TO: Final = "tracerouter.fallback.to"
FALLBACK_REASON: Final = "tracerouter.fallback.reason"
PROMPT_HASH: Final = "tracerouter.prompt_hash"
TENANT: Final = "tracerouter.tenant"
REQUEST_ID: Final = "tracerouter.request_id"

DECISION_EVENT: Final = "tracerouter.decision"
RETRY_EVENT: Final = "retry"
