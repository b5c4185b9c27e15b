//! What an operator can set about HTTP/2.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings of HTTP/2 connections, from applications and to instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http2Settings {
    /// The most streams an application may have open on one connection; it is told, and waits. 1 to 100,000; default
    /// 250.
    pub max_streams: u32,
    /// The most bytes of one stream that have come and have not gone on; the sender waits. Also the most that wait to be
    /// sent. 65,535 to 16,777,216; default 262,144.
    pub stream_window_bytes: u32,
    /// The same of all streams of one connection together: what a connection can take of memory. At least
    /// `stream_window_bytes`, up to 67,108,864; default 1,048,576.
    pub connection_window_bytes: u32,
    /// The most connections of one worker to one instance. Another is opened when the instance takes no more streams by
    /// those there are; beyond this, requests wait for a stream. 1 to 1,000; default 8.
    pub max_connections_per_instance: usize,
    /// How long a connection without a stream is kept, from either side. 1,000 to 86,400,000; default 300,000.
    pub idle_timeout_ms: u64,
    /// An instance that has been silent for so long while streams are open is asked for a sign of life (PING).
    /// 1,000 to 3,600,000; default 20,000.
    pub keepalive_ms: u64,
    /// How long it may take to give one before its connection is given up. 100 to 600,000; default 10,000.
    pub keepalive_timeout_ms: u64,
}

impl Default for Http2Settings {
    fn default() -> Self {
        Self {
            max_streams: 250,
            stream_window_bytes: 256 * 1024,
            connection_window_bytes: 1024 * 1024,
            max_connections_per_instance: 8,
            idle_timeout_ms: 300_000,
            keepalive_ms: 20_000,
            keepalive_timeout_ms: 10_000,
        }
    }
}

impl Http2Settings {
    /// Each field with its value and range.
    pub(crate) fn ranges(&self) -> [(&'static str, u64, u64, u64); 7] {
        let stream_window = u64::from(self.stream_window_bytes);
        [
            ("http2.max_streams", u64::from(self.max_streams), 1, 100_000),
            ("http2.stream_window_bytes", stream_window, 65_535, 16 << 20),
            ("http2.connection_window_bytes", u64::from(self.connection_window_bytes), stream_window, 64 << 20),
            ("http2.max_connections_per_instance", self.max_connections_per_instance as u64, 1, 1_000),
            ("http2.idle_timeout_ms", self.idle_timeout_ms, 1_000, 86_400_000),
            ("http2.keepalive_ms", self.keepalive_ms, 1_000, 3_600_000),
            ("http2.keepalive_timeout_ms", self.keepalive_timeout_ms, 100, 600_000),
        ]
    }

    pub(crate) fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }

    pub(crate) fn keepalive(&self) -> Duration {
        Duration::from_millis(self.keepalive_ms)
    }

    pub(crate) fn keepalive_timeout(&self) -> Duration {
        Duration::from_millis(self.keepalive_timeout_ms)
    }
}
