"""The near-duplicate index that all prompt workers of a run share, kept in Redis.

    ppv:texts:<run>              "whole", or "rebuilding" while someone takes in what the store has
    ppv:texts:<run>:<4 digits>   a hash of bands: 4 bytes of the band -> 4 bytes of a prompt's id
    ppv:texts:<run>:bands        how many there are in all hashes
    ppv:texts:<run>:refreshed    there for an hour after all of them had their expiry put off

It takes in no more than 4.2 million bands: so many prompts' as 525,000 have at .85 (8 bands each)
and 168,000 at .5 (25). Beyond that texts are only compared with those, and with others of the same
call. So a run's never takes more than some 50 MB, and every hash stays below the 512 entries of
which Redis makes no table, which takes six times as much. `python -m bench.capacity` counts what a
prompt takes.
"""

from collections.abc import Iterable, Sequence
from itertools import islice

import redis

from pipeline.prompter.near import bands, owner
from workers.broker import explained

_TTL_S = 24 * 3600
_SPARE_S = 3600  # bands outlive the word "whole", which must be true
_LEASE_S = 60  # of who rebuilds the index
_REBUILT_AT_ONCE = 256  # texts: Redis does nothing else meanwhile
_HASHES = 1 << 14
_MOST_BANDS = _HASHES << 8

# Keys are made here, not declared: which ones a claim touches depends on the bands.
_CLAIM = """
local prefix, ttl, spare = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local hashes, most_bands = tonumber(ARGV[3]), tonumber(ARGV[4])
local counter = prefix .. ':bands'

local function place(band)
  local first, second = string.byte(band, 1, 2)
  local hash = (256 * first + second) % hashes
  return string.format('%s:%04x', prefix, hash), string.sub(band, 3, 6)
end

local here = {}  -- what was new in this call and found no room

local function is_near(owner, bands)
  for at = 1, #bands, 6 do
    local band = string.sub(bands, at, at + 5)
    local key, field = place(band)
    local other = redis.call('HGET', key, field) or here[band]
    if other and other ~= owner then return true end
  end
  return false
end

-- Every hash at once, but only when an hour of the old time is gone: so many commands each time
-- would cost more than the claim.
local refreshed = prefix .. ':refreshed'
if not redis.call('GET', refreshed) then
  redis.call('SET', refreshed, 1, 'EX', spare)
  redis.call('EXPIRE', counter, ttl + 2 * spare)
  for index = 0, hashes - 1 do
    redis.call('EXPIRE', string.format('%s:%04x', prefix, index), ttl + 2 * spare)
  end
end
if redis.call('GET', prefix) == 'whole' then redis.call('EXPIRE', prefix, ttl) end

local function take_in(owner, bands)
  local added = 0
  for at = 1, #bands, 6 do
    local key, field = place(string.sub(bands, at, at + 5))
    added = added + redis.call('HSET', key, field, owner)
    redis.call('EXPIRE', key, ttl + 2 * spare)
  end
  redis.call('INCRBY', counter, added)
  redis.call('EXPIRE', counter, ttl + 2 * spare)
end

local function keep_here(owner, bands)
  for at = 1, #bands, 6 do here[string.sub(bands, at, at + 5)] = owner end
end

local new = {}
for at = 5, #ARGV, 2 do
  local owner, bands = ARGV[at], ARGV[at + 1]
  if is_near(owner, bands) then
    new[#new + 1] = 0
  else
    local full = tonumber(redis.call('GET', counter) or 0) >= most_bands
    if full then keep_here(owner, bands) else take_in(owner, bands) end
    new[#new + 1] = 1
  end
end
return new
"""


class RedisNeighbours:
    """The texts of a run, whichever process they came from.

    address: the broker's, for messages. Every verb raises ServiceError where Redis is away.
    """

    def __init__(self, client: redis.Redis, run: str, threshold: float, address: str) -> None:
        self._redis, self._address = client, address
        self._prefix = f"ppv:texts:{run}"
        self._threshold = threshold
        self._script = client.register_script(_CLAIM)

    def claim(self, items: Sequence[tuple[str, str]]) -> list[bool]:
        """As Neighbours has it, at once for all items: no other process comes between them."""
        if not items:
            return []
        arguments: list[int | bytes] = [_TTL_S, _SPARE_S, _HASHES, _MOST_BANDS]
        for id, text in items:
            arguments += owner(id), b"".join(bands(text, self._threshold))
        with explained(self._address):
            return [bool(new) for new in self._script(keys=[self._prefix], args=arguments)]

    def is_whole(self) -> bool:
        """Whether Redis knows the texts that the store has: not in a new run, nor once wiped."""
        with explained(self._address):
            return self._redis.get(self._prefix) in ("whole", b"whole")

    def rebuild(self, texts: Iterable[tuple[str, str]]) -> None:
        """Take in what the store has.

        texts: as for `claim`; not read at all where the index is whole, or another process is
        rebuilding it. If that one dies, whoever calls this a minute later takes over.
        """
        with explained(self._address):
            if not self._redis.set(self._prefix, "rebuilding", nx=True, ex=_LEASE_S):
                return
            # What is left of one that expired in parts would be counted wrongly.
            parts = [f"{index:04x}" for index in range(_HASHES)]
            self._redis.unlink(*(f"{self._prefix}:{part}" for part in ("bands", *parts)))
        rest = iter(texts)
        while some := list(islice(rest, _REBUILT_AT_ONCE)):
            self.claim(some)
            with explained(self._address):
                self._redis.expire(self._prefix, _LEASE_S)
        with explained(self._address):
            self._redis.set(self._prefix, "whole", ex=_TTL_S)
