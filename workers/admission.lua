-- Who may ask the endpoint now: one decision for all workers of a run, in one call.
--
-- KEYS: the run's state, its claims, their records; the set of cancelled runs.
--   state    a hash. Dollars, in billionths, so that sums are exact: restored (what the store knew),
--            spent (since then), reserved (by requests under way),
--            limit (below 0: none). The window: window (absent: as
--            wide as it may be), ceiling, shrunk_at. Times, in microseconds: paused_until,
--            requests_at and tokens_at (when a bucket is full again: GCRA's theoretical arrival
--            time), awaited_until (by when who waits has asked again), head_at (when `head`, a large request that waits for tokens, may go).
--   claims   a sorted set: request key -> when its claim expires
--   records  a hash: request key -> "reserved dollars, reserved tokens, holder"
-- ARGV: the verb, how long a claim lives, and what the verb takes.

local state, claims, records = KEYS[1], KEYS[2], KEYS[3]
local verb, life = ARGV[1], tonumber(ARGV[2])

local SECOND = 1e6
local DAY_S = 24 * 3600
local BURST = 2 * SECOND      -- what a bucket holds, as time of its rate
local GRACE = 2 * SECOND      -- how late the head may be before others go first
local SHRINK_EVERY = SECOND
local PAUSE_AT_MOST = 600 * SECOND
local LATE = 2 * SECOND       -- how late someone who was told to wait may come back
local BACK_OFF = 35 * SECOND  -- the longest that someone who was not told when comes back in

local GO, TAKEN, WAIT, FULL, BROKE, CANCELLED = 0, 1, 2, 3, 4, 5

local time = redis.call('TIME')
local now = time[1] * SECOND + time[2]

local function whole(number)  -- Lua would write 1e+15; and Redis refuses -0
  return string.format('%.0f', math.floor(number + 0.5) + 0)
end

local function read(field)
  return tonumber(redis.call('HGET', state, field) or nil)
end

local function keep()
  for index = 1, 3 do redis.call('EXPIRE', KEYS[index], DAY_S) end
end

local function record_of(key)
  local text = redis.call('HGET', records, key)
  if not text then return nil end
  local dollars, tokens, holder = string.match(text, '^(%d+) (%d+) (.*)$')
  return {dollars = tonumber(dollars), tokens = tonumber(tokens), holder = holder}
end

local function free(key, record)
  redis.call('ZREM', claims, key)
  redis.call('HDEL', records, key)
  if record.dollars > 0 then
    redis.call('HINCRBY', state, 'reserved', whole(-record.dollars))
  end
end

local function free_expired()
  for _, key in ipairs(redis.call('ZRANGEBYSCORE', claims, '-inf', whole(now))) do
    free(key, record_of(key))
  end
end

local function await(time)  -- somebody will ask again until then
  if time > (read('awaited_until') or 0) then
    redis.call('HSET', state, 'awaited_until', whole(time))
  end
end

-- When a bucket lets `units` more through: in how many microseconds, and its time after that. What
-- is larger than the bucket goes when the bucket is full, and leaves a debt.
local function bucket(field, units, per_minute)
  if per_minute == 0 then return 0, nil end
  local cost = units * 60 * SECOND / per_minute
  local full_at = math.max(now, read(field) or 0)
  return math.max(0, full_at - now - math.max(0, BURST - cost)), full_at + cost, cost
end

local function admit(key, holder, concurrency, requests_per_minute, tokens_per_minute, limit,
                     tokens, dollars)
  if redis.call('SISMEMBER', KEYS[4], ARGV[#ARGV]) == 1 then return {CANCELLED, 0} end
  local taken = record_of(key)
  if taken and taken.holder ~= holder then return {TAKEN, 0} end
  if taken then  -- the answer to the first call was lost on its way
    redis.call('ZADD', claims, whole(now + life), key)
    return {GO, 0}
  end

  local reserved = read('reserved') or 0
  local spent = (read('restored') or 0) + (read('spent') or 0)
  if limit >= 0 then
    if spent + dollars > limit then return {BROKE, 0} end
    -- What is under way may turn out cheaper than it was held to be.
    if spent + reserved + dollars > limit then return {FULL, 0} end
  end

  local paused_until = read('paused_until') or 0
  if paused_until > now then return {WAIT, paused_until - now} end

  local window = math.min(read('window') or concurrency, concurrency)
  if redis.call('ZCARD', claims) >= math.floor(window) then return {FULL, 0} end

  local head, head_at = redis.call('HGET', state, 'head'), read('head_at')
  if head and head_at + GRACE < now then
    redis.call('HDEL', state, 'head', 'head_at')
    head = false
  end
  if head and head ~= key and tokens_per_minute > 0 then
    return {WAIT, math.max(head_at - now, SECOND / 20)}
  end

  local for_requests, requests_at = bucket('requests_at', 1, requests_per_minute)
  local for_tokens, tokens_at, cost = bucket('tokens_at', tokens, tokens_per_minute)
  local wait = math.max(for_requests, for_tokens)
  if wait > 0 then
    -- Small requests would take the tokens for which a large one waits, again and again.
    if for_tokens > 0 and cost > BURST / 2 then
      redis.call('HSET', state, 'head', key, 'head_at', whole(now + wait))
    end
    return {WAIT, wait}
  end

  redis.call('ZADD', claims, whole(now + life), key)
  redis.call('HSET', records, key, whole(dollars) .. ' ' .. whole(tokens) .. ' ' .. holder)
  redis.call('HSET', state, 'reserved', whole(reserved + dollars), 'ceiling', whole(concurrency),
             'limit', whole(limit),
             'tokens_per_minute', whole(tokens_per_minute))
  if requests_at then redis.call('HSET', state, 'requests_at', whole(requests_at)) end
  if tokens_at then redis.call('HSET', state, 'tokens_at', whole(tokens_at)) end
  if head == key then redis.call('HDEL', state, 'head', 'head_at') end
  return {GO, 0}
end

local function settle(key, holder, dollars, tokens)
  local mine = record_of(key)
  if mine and mine.holder == holder then
    free(key, mine)
    local per_minute = read('tokens_per_minute') or 0
    if per_minute > 0 and tokens ~= mine.tokens then
      local more = tokens - mine.tokens
      local full_at = read('tokens_at') or 0
      if more > 0 then full_at = math.max(now, full_at) end
      redis.call('HSET', state, 'tokens_at', whole(full_at + more * 60 * SECOND / per_minute))
    end
  end
  if dollars > 0 then redis.call('HINCRBY', state, 'spent', whole(dollars)) end
  local window = read('window')
  if window then
    window = window + 1 / window
    if window < (read('ceiling') or window) then
      redis.call('HSET', state, 'window', string.format('%.6f', window))
    else
      redis.call('HDEL', state, 'window')
    end
  end
end

local function release(key, holder, busy, pause)
  local mine = record_of(key)
  if mine and mine.holder == holder then free(key, mine) end
  if busy == 0 then return end
  local ceiling = read('ceiling')
  local window = read('window') or ceiling
  if busy == 2 and window and now - (read('shrunk_at') or 0) >= SHRINK_EVERY then
    window = math.max(1, math.min(window, ceiling) / 2)
    redis.call('HSET', state, 'window', string.format('%.6f', window), 'shrunk_at', whole(now))
  end
  local paused_until = now + math.min(pause, PAUSE_AT_MOST)
  await(math.max(paused_until + LATE, now + BACK_OFF))
  if pause > 0 and paused_until > (read('paused_until') or 0) then
    redis.call('HSET', state, 'paused_until', whole(paused_until))
  end
end

-- ARGV from 3 on: key, holder, key, holder, ... A claim that has expired comes back, unless it was
-- freed meanwhile.
local function renew()
  for at = 3, #ARGV, 2 do
    local record = record_of(ARGV[at])
    if record and record.holder == ARGV[at + 1] then
      redis.call('ZADD', claims, whole(now + life), ARGV[at])
    end
  end
end

local function numbers(from)
  local found = {}
  for at = from, #ARGV do found[#found + 1] = tonumber(ARGV[at]) end
  return unpack(found)
end

local answer = {GO, 0}
if verb == 'admit' then
  free_expired()
  answer = admit(ARGV[3], ARGV[4], numbers(5))
  if answer[1] == WAIT then await(now + answer[2] + LATE) end
elseif verb == 'settle' then
  settle(ARGV[3], ARGV[4], numbers(5))
elseif verb == 'release' then
  release(ARGV[3], ARGV[4], numbers(5))
elseif verb == 'renew' then
  renew()
elseif verb == 'count' then
  return redis.call('ZCOUNT', claims, '(' .. whole(now), '+inf')
elseif verb == 'awaited' then
  return (read('awaited_until') or 0) > now and 1 or 0
end
keep()
return answer
