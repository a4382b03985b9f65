-- What workers say of their work: one call a message.
--
-- KEYS: counters, workers, runs; as metrics.py describes them.
-- ARGV: the verb, and what it takes.
--   count: a run or "", then amount, field, amount, field, ...
--   alive: how many processes the worker has, then [queue, worker] for each queue
--   gone:  [queue, worker] for each queue

local counters, workers, runs = KEYS[1], KEYS[2], KEYS[3]

local MOST_FIELDS = 10000  -- labels come from messages: they must not fill Redis
local MOST_RUNS = 100
local DAY_S, HOUR_S = 24 * 3600, 3600

local now = tonumber(redis.call('TIME')[1])

local function add(amount, field)
  if redis.call('HEXISTS', counters, field) == 0
      and redis.call('HLEN', counters) >= MOST_FIELDS then
    field = '["uncounted"]'
  end
  redis.call('HINCRBYFLOAT', counters, field, amount)
end

local function of_worker(name, member)  -- member: '["propose","celery@host"]'
  return '["' .. name .. '",' .. string.sub(member, 2)
end

local function count()
  for at = 3, #ARGV, 2 do add(ARGV[at], ARGV[at + 1]) end
  if ARGV[2] ~= '' then
    redis.call('ZADD', runs, now, ARGV[2])
    redis.call('ZREMRANGEBYSCORE', runs, '-inf', now - DAY_S)
    redis.call('ZREMRANGEBYRANK', runs, 0, -MOST_RUNS - 1)
  end
end

local function alive()
  for at = 3, #ARGV do
    redis.call('ZADD', workers, now, ARGV[at])
    redis.call('HSET', counters, of_worker('processes', ARGV[at]), ARGV[2])
    redis.call('HINCRBYFLOAT', counters, of_worker('busy_seconds', ARGV[at]), 0)
  end
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', workers, '-inf', now - HOUR_S)) do
    redis.call('ZREM', workers, member)
    redis.call('HDEL', counters, of_worker('processes', member), of_worker('busy_seconds', member))
  end
end

if ARGV[1] == 'count' then
  count()
elseif ARGV[1] == 'alive' then
  alive()
elseif ARGV[1] == 'gone' then
  for at = 2, #ARGV do redis.call('ZADD', workers, 0, ARGV[at]) end
end
return now
