//! The antagonists as a picture: the slowest percent of each rule against load.

use std::fmt::Write;

use crate::antagonists::Run;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 230.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 50.0;
/// What can be told apart, by the eyes of most people.
const COLOURS: [&str; 9] =
    ["#999999", "#bbbbbb", "#8c564b", "#e69f00", "#d55e00", "#cc79a7", "#0072b2", "#009e73", "#000000"];
const TICKS_MS: [f64; 6] = [100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0];

/// The picture, as SVG.
pub(crate) fn draw(runs: &[Run]) -> String {
    let loads: Vec<f64> =
        runs.first().map(|run| run.points.iter().map(|point| point.load).collect()).unwrap_or_default();
    let (first, last) = (loads.first().copied().unwrap_or(0.0), loads.last().copied().unwrap_or(1.0));
    let x = |load: f64| LEFT + (load - first) / (last - first) * (WIDTH - LEFT - RIGHT);
    let y = |ms: f64| {
        let share = (ms.clamp(100.0, 5_000.0) / 100.0).ln() / 50f64.ln();
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    };
    let mut svg = String::new();
    // Writing into memory does not fail.
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">99th percentile in ms, by load in % of what instances are allotted</text>\n"
    );
    for ms in TICKS_MS {
        let at = y(ms);
        let end = WIDTH - RIGHT;
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{end}\" y2=\"{at:.1}\" stroke=\"#e5e5e5\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{ms:.0}</text>",
            LEFT - 8.0,
            at + 4.0
        );
    }
    for load in &loads {
        let (at, below) = (x(*load), HEIGHT - BOTTOM + 20.0);
        let _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{:.0}</text>", load * 100.0);
    }
    for (number, (run, colour)) in runs.iter().zip(COLOURS).enumerate() {
        let line: Vec<String> =
            run.points.iter().map(|point| format!("{:.1},{:.1}", x(point.load), y(point.p99))).collect();
        let (key, legend) = (WIDTH - RIGHT + 20.0, TOP + 20.0 * number as f64);
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
             <line x1=\"{key}\" y1=\"{legend}\" x2=\"{:.1}\" y2=\"{legend}\" stroke=\"{colour}\" stroke-width=\"3\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
            line.join(" "),
            key + 18.0,
            key + 26.0,
            legend + 4.0,
            run.name
        );
    }
    svg.push_str("</svg>\n");
    svg
}
