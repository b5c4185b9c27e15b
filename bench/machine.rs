//! The machine a figure was measured on, for every benchmark's first lines.

/// One line: processor, cores, kernel, build.
pub(crate) fn describe() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let build = if cfg!(debug_assertions) { "DEBUG BUILD: figures mean nothing" } else { "release build" };
    format!("{model}, {cores} cores, Linux {}, {build}", kernel.trim())
}

/// The memory this process holds now, in bytes.
#[allow(dead_code)] // not every benchmark measures memory
pub(crate) fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = status.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}

/// The time this thread has spent on a processor.
#[allow(dead_code)] // not every benchmark needs it
pub(crate) fn cpu_time() -> std::time::Duration {
    let figures = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = figures.split_whitespace().next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0);
    std::time::Duration::from_nanos(nanos)
}
