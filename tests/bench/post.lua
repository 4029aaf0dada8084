-- wrk's request: a chat completion of about SIZE bytes, unique, streamed where STREAM is "true", and with the
-- fields of a bootstrap room where ROOMS is "true".
local size = tonumber(os.getenv("SIZE")) or 0
local stream = os.getenv("STREAM") == "true" and "true" or "false"
local tokens = os.getenv("TOKENS") or "8"
local padding = string.rep("the quick brown fox jumps over it ", math.floor(size / 34))
local rooms = os.getenv("ROOMS") == "true"
local sent = 0

wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"

function request()
  sent = sent + 1
  local room = ""
  if rooms then
    room = '"bootstrap_host":"127.0.5.1","bootstrap_port":8998,"bootstrap_room":' .. sent .. ","
  end
  local body = "{" .. room .. '"model":"/models/Qwen3-32B","messages":[{"role":"user","content":"number '
    .. sent .. " " .. padding .. '"}],"max_tokens":' .. tokens .. ',"stream":' .. stream .. "}"
  return wrk.format(nil, "/v1/chat/completions", nil, body)
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("result %d %d %.1f %.1f %d\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
