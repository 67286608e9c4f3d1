//! Our two bits of the socket mark.

use std::io;

use aya::maps::{Array, Map, MapData};
use mesh_common::abi::{ABI_VERSION, AGENT_MARK, CAPTURE_MARK, Config};

use super::pins::Pins;

/// Which bits of a socket's mark are ours. Everything else of a mark is never changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// The bit of a captured socket.
    pub capture: u32,
    /// The bit of the agent's own sockets.
    pub agent: u32,
}

impl Default for Marks {
    fn default() -> Self {
        Self {
            capture: CAPTURE_MARK,
            agent: AGENT_MARK,
        }
    }
}

impl Marks {
    /// From two bit numbers, 0 to 31.
    pub fn of_bits(capture: u8, agent: u8) -> Self {
        Self {
            capture: 1 << (capture & 31),
            agent: 1 << (agent & 31),
        }
    }

    /// Both.
    pub(super) fn mask(self) -> u32 {
        self.capture | self.agent
    }

    /// What a written `CONFIG` says; `None` for one that nobody wrote.
    pub(super) fn of(config: &Config) -> Option<Self> {
        (config.abi == ABI_VERSION).then_some(Self {
            capture: config.capture_mark,
            agent: config.agent_mark,
        })
    }

    /// What an agent before us has used, by its pinned settings; `None` when there are none.
    pub(super) fn pinned(pins: &Pins) -> Option<Self> {
        let open = || -> io::Result<Config> {
            let data = MapData::from_pin(pins.map("CONFIG")).map_err(io::Error::other)?;
            let map = Map::from_map_data(data).map_err(io::Error::other)?;
            let map: Array<MapData, Config> = map.try_into().map_err(io::Error::other)?;
            map.get(&0, 0).map_err(io::Error::other)
        };
        open().ok().as_ref().and_then(Self::of)
    }
}
