-- For wrk: posts texts one after the other and compares every answer with what the batch job said of that text.
-- $LOAD_CASE returns {path = "...", bodies = {...}, answers = {...}}; places in the list travel as X-Request-ID.
-- With $LOAD_OBEY a connection that gets 429 waits as Retry-After says; otherwise it tries again at once.
local case = dofile(os.getenv("LOAD_CASE"))
local obey = os.getenv("LOAD_OBEY") ~= nil
local threads = {}
local at = 0
local owed = {}
right, wrong, refused, failed = 0, 0, 0, 0

function setup(thread)
  table.insert(threads, thread)
  thread:set("first", #threads * 7919)
end

function init(args)
  at = first
end

function request()
  at = at % #case.bodies + 1
  local headers = {["Content-Type"] = "application/json", ["X-Request-ID"] = tostring(at)}
  return wrk.format("POST", case.path, headers, case.bodies[at])
end

function response(status, headers, body)
  if status == 200 then
    local id = tonumber(headers["x-request-id"] or headers["X-Request-ID"])
    local given = {}
    for label, layer in body:gmatch('"label_id":(%d+).-"exit_layer":(%d+)') do
      table.insert(given, label .. ":" .. layer)
    end
    if table.concat(given, " ") == case.answers[id] then right = right + 1 else wrong = wrong + 1 end
  elseif status == 429 then
    refused = refused + 1
    if obey then table.insert(owed, 1000 * tonumber(headers["retry-after"] or headers["Retry-After"])) end
  else
    failed = failed + 1
  end
end

function delay()
  return table.remove(owed, 1) or 0
end

function done(summary, latency, requests)
  local sums = {right = 0, wrong = 0, refused = 0, failed = 0}
  for _, thread in ipairs(threads) do
    for name, _ in pairs(sums) do sums[name] = sums[name] + thread:get(name) end
  end
  local lost = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format(
    '{"seconds": %f, "right": %d, "wrong": %d, "refused": %d, "failed": %d, "lost": %d, "p50": %f, "p95": %f, "p99": %f}\n',
    summary.duration / 1e6, sums.right, sums.wrong, sums.refused, sums.failed, lost,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3))
end
