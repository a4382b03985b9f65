-- What is under way, run by run: one decision for all who send, in one call.
--
-- KEYS: the set of runs, the set of cancelled runs. A run's own key is KEYS[1] .. ':' .. run, a hash:
--   <message id>  the proposals that this message stands for, a space, and the message
--   proposals     their sum
--   weight        what its priority counts
--   asked_at      when room was last asked for, in seconds
-- ARGV: the verb, the run, and what the verb takes; a message as its field has it.

local verb, run = ARGV[1], ARGV[2]
local LIFE_S = 3600  -- what nobody has touched for so long is under way no more
local HUNGRY_S = 10  -- who has not asked for so long has nothing to send

local ENTERED, FULL, THERE, CANCELLED = 0, 1, 2, 3

local now = tonumber(redis.call('TIME')[1])

local function key_of(name)
  return KEYS[1] .. ':' .. name
end

local function read(name, field)
  return tonumber(redis.call('HGET', key_of(name), field) or nil) or 0
end

local function touch()
  redis.call('SADD', KEYS[1], run)
  redis.call('EXPIRE', key_of(run), LIFE_S)
end

-- The run's part of the window: by weight, among all that send or have something under way.
local function share(window, weight)
  local weights = weight
  for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    if redis.call('EXISTS', key_of(name)) == 0 then
      redis.call('SREM', KEYS[1], name)
    elseif name ~= run and (
      read(name, 'proposals') > 0 or read(name, 'asked_at') + HUNGRY_S > now
    ) then
      weights = weights + read(name, 'weight')
    end
  end
  return math.floor(window * weight / weights)
end

local function proposals_of(message)
  return tonumber(string.match(message, '^%d+'))
end

local function add(id, message)
  if redis.call('HSETNX', key_of(run), id, message) == 1 then
    redis.call('HINCRBY', key_of(run), 'proposals', proposals_of(message))
  end
end

local function take(id)
  local message = redis.call('HGET', key_of(run), id)
  if message then
    redis.call('HDEL', key_of(run), id)
    redis.call('HINCRBY', key_of(run), 'proposals', -proposals_of(message))
  end
end

local function is_cancelled()
  return redis.call('SISMEMBER', KEYS[2], run) == 1
end

if verb == 'enter' then
  local window, weight = tonumber(ARGV[3]), tonumber(ARGV[4])
  local id, message = ARGV[5], ARGV[6]
  if is_cancelled() then return CANCELLED end
  redis.call('HSET', key_of(run), 'weight', weight, 'asked_at', now)
  touch()
  if redis.call('HEXISTS', key_of(run), id) == 1 then return THERE end
  local under_way = read(run, 'proposals')
  -- A message that is larger than the share goes when nothing else is under way.
  if under_way > 0 and under_way + proposals_of(message) > share(window, weight) then return FULL end
  add(id, message)
  return ENTERED
elseif verb == 'move' then  -- ARGV from 4 on: id, message, id, message, ...
  take(ARGV[3])
  if is_cancelled() then return CANCELLED end
  for at = 4, #ARGV, 2 do add(ARGV[at], ARGV[at + 1]) end
  touch()
  return ENTERED
elseif verb == 'share' then
  return {read(run, 'proposals'), share(tonumber(ARGV[3]), tonumber(ARGV[4]))}
end
