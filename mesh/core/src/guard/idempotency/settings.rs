//! `[idempotency]`: which requests have keys, and how their answers are kept.

use serde::{Deserialize, Serialize};

use super::super::refusal::{Invalid, all_within};

/// Which requests have keys, and how their answers are kept. Durations are milliseconds; all memory is that of one node
/// for one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IdempotencySettings {
    /// The header field with the key, in lower case. 1 to 64 bytes; default `idempotency-key` (the IETF's draft).
    pub header: String,
    /// The methods it is looked at for. Up to 16; default POST and PATCH: the others are repeatable as they are. None
    /// switches it off, for a route of a service that has it.
    pub methods: Vec<String>,
    /// Whether such a request without a key is refused (400). Default false.
    pub required: bool,
    /// Whose keys are told apart. Default `caller`.
    pub scope: KeyScope,
    /// Header fields that are part of the key too, in lower case, as `authorization` or `x-tenant`: with another value of
    /// one it is another key. Up to 4; default none.
    pub scope_headers: Vec<String>,
    /// How long an answer is kept. 1,000 to 604,800,000 (a week); default 600,000 (ten minutes).
    pub window_ms: u64,
    /// What happens to a repeat while the first is under way. Default `wait`.
    pub meanwhile: Meanwhile,
    /// How long a repeat waits for the first answer; then it is told that it is under way. 1 to 600,000; default 10,000.
    pub max_wait_ms: u64,
    /// How long the application may take with a first request, whether or not its client still waits; then it is held for
    /// lost, and the key is free. 1,000 to 3,600,000; default 60,000.
    pub lost_after_ms: u64,
    /// Whether an answer that says "not now" or "I failed" (408, 425, 429, 500 and above) is kept like any other; default
    /// false: it goes to its own client only, and the key is free again.
    pub keep_failures: bool,
    /// The most keys known at once. 1 to 10,000,000; default 10,000.
    pub max_keys: u32,
    /// The most bytes all answers have together. 1,024 to 17,179,869,184; default 16,777,216 (16 MiB).
    pub max_bytes: u64,
    /// The most bytes the body of an answer may have to be kept. 0 to 16,777,216; default 65,536.
    pub max_answer_bytes: u64,
    /// The most bytes the body of a request with a key may have: it is held, to be compared with that of a repeat. A larger
    /// one, or one of a length that is not given first, is refused (413). 0 to 16,777,216; default 1,048,576 (1 MiB).
    pub max_body_bytes: u64,
    /// Whether callers send all requests with one key to the same instance, whatever `[balance]` says. Default true.
    pub steer: bool,
    /// How many other nodes with instances of the service are asked whether they know a key, before its first request is
    /// carried. 0 to 8; default 2.
    pub ask: u32,
    /// How long they have to answer. 1 to 10,000; default 500.
    pub ask_ms: u64,
    /// What happens to a first request when one of them does not answer. Default `carry`.
    pub unanswered: Unanswered,
}

/// Whose keys are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyScope {
    /// Those of one calling service; callers of whom nobody knows the service have theirs together.
    #[default]
    Caller,
    /// Those of all who call the service.
    Service,
}

/// What happens to a repeat while the first request is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Meanwhile {
    /// It waits for the first answer.
    #[default]
    Wait,
    /// It is told so, with 409.
    Conflict,
}

/// What happens to a first request when a node that may know its key does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unanswered {
    /// It is carried: available, and perhaps done twice.
    #[default]
    Carry,
    /// It is refused (503): never done twice for that reason, and perhaps not done.
    Refuse,
}

impl Default for IdempotencySettings {
    fn default() -> Self {
        Self {
            header: "idempotency-key".into(),
            methods: vec!["POST".into(), "PATCH".into()],
            required: false,
            scope: KeyScope::default(),
            scope_headers: Vec::new(),
            window_ms: 600_000,
            meanwhile: Meanwhile::Wait,
            max_wait_ms: 10_000,
            lost_after_ms: 60_000,
            keep_failures: false,
            max_keys: 10_000,
            max_bytes: 16 << 20,
            max_answer_bytes: 65_536,
            max_body_bytes: 1 << 20,
            steer: true,
            ask: 2,
            ask_ms: 500,
            unanswered: Unanswered::default(),
        }
    }
}

impl IdempotencySettings {
    /// What is out of its bounds, if anything.
    ///
    /// # Errors
    /// The first such field.
    pub fn check(&self) -> Result<(), Invalid> {
        let is_name = |name: &str| {
            let is_of_names = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
            !name.is_empty() && name.len() <= 64 && name.chars().all(is_of_names)
        };
        let names = std::iter::once(("header", &self.header));
        let names = names.chain(self.scope_headers.iter().map(|name| ("scope_headers", name)));
        for (field, name) in names {
            if !is_name(name) {
                return Err(Invalid::new(field, format_args!("{name:?}"), "a header field's name in lower case"));
            }
        }
        let is_method = |method: &String| {
            !method.is_empty() && method.len() <= 32 && method.chars().all(|c| c.is_ascii_uppercase())
        };
        if let Some(wrong) = self.methods.iter().find(|method| !is_method(method)) {
            return Err(Invalid::new("methods", format_args!("{wrong:?}"), "methods in capitals"));
        }
        all_within([
            ("methods (entries)", self.methods.len() as u64, 0..=16),
            ("scope_headers (entries)", self.scope_headers.len() as u64, 0..=4),
            ("window_ms", self.window_ms, 1_000..=604_800_000),
            ("max_wait_ms", self.max_wait_ms, 1..=600_000),
            ("lost_after_ms", self.lost_after_ms, 1_000..=3_600_000),
            ("max_keys", self.max_keys.into(), 1..=10_000_000),
            ("max_bytes", self.max_bytes, 1_024..=16 << 30),
            ("max_answer_bytes", self.max_answer_bytes, 0..=16 << 20),
            ("max_body_bytes", self.max_body_bytes, 0..=16 << 20),
            ("ask", self.ask.into(), 0..=8),
            ("ask_ms", self.ask_ms, 1..=10_000),
        ])
    }

    /// Whether an answer of this status is the last word on a key.
    pub fn is_final(&self, status: u16) -> bool {
        self.keep_failures || (status < 500 && !matches!(status, 408 | 425 | 429))
    }

    /// Whether keys are looked at for this method.
    pub fn is_for(&self, method: &str) -> bool {
        self.methods.iter().any(|known| known == method)
    }
}
