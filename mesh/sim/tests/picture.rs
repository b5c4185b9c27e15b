//! What a picture of a run shows, and that it is a page which needs nothing else.

use starling_sim::picture::{Page, Scale};
use starling_sim::scenario::{Scenario, Timeline, record, run};
use starling_sim::{Mesh, Recording, secs};

/// A recorded scenario.
struct Played {
    timeline: Timeline,
    recording: Recording,
    name: String,
}

impl Played {
    fn of(text: &str, seed: u64) -> Self {
        let scenario: Scenario = text.parse().expect("a scenario");
        let (timeline, recording) = record(&scenario, seed);
        Self { timeline, recording, name: scenario.name().into() }
    }

    fn page(&self) -> Page<'_> {
        let (timeline, recording) = (&self.timeline, &self.recording);
        let page = Page::of(recording, timeline.report());
        Page { title: &self.name, replay: "starling sim it", story: timeline.lines(), ok: timeline.ok(), ..page }
    }
}

const SHIPPED: &str = include_str!("../../../examples/scenarios/partition.toml");

fn count(text: &str, what: &str) -> usize {
    text.matches(what).count()
}

#[test]
fn writing_a_run_down_changes_nothing_about_it() {
    let scenario: Scenario = SHIPPED.parse().unwrap();
    let (timeline, recording) = record(&scenario, 3);
    assert_eq!(timeline, run(&scenario, 3));
    assert_eq!((recording.nodes.len(), recording.writes.len(), recording.judged.len()), (5, 7, 11));
}

#[test]
fn the_same_seed_gives_the_same_page_to_the_byte() {
    let page = |seed| Played::of(SHIPPED, seed).page().html();
    assert_eq!(page(7), page(7));
    assert_ne!(page(7), page(8));
}

#[test]
fn a_page_asks_for_nothing_from_outside() {
    let page = Played::of(SHIPPED, 7).page().html();
    for outside in ["http:", "https:", "src=", "href=", "url(//", "@import", "fetch("] {
        assert!(!page.contains(outside), "{outside} in the page");
    }
    assert_eq!(count(&page, "<svg"), count(&page, "</svg>"));
    assert_eq!(count(&page, "<g"), count(&page, "</g>"));
}

#[test]
fn a_partition_is_seen_as_a_fence_two_colours_and_lines_that_wait_for_the_heal() {
    let played = Played::of(SHIPPED, 7);
    let page = played.page();
    for drawing in [page.svg(Scale::Clock), page.svg(Scale::Events)] {
        assert_eq!(count(&drawing, "class=\"fence\" x1=\"0\""), 1, "the legend's");
        assert_eq!(count(&drawing, "class=\"fence\""), 2, "one fence between the sides, one in the legend");
        assert!(drawing.contains("a1 a2 a3 ✕ b1 b2"), "who is cut from whom");
        assert!(count(&drawing, "truth t1") > 2 && count(&drawing, "truth t0") > 5, "two colours");
        assert!(count(&drawing, " late\"") >= 4, "what the other side wrote arrives after the heal");
        assert!(drawing.contains("b2 after 40.2 s") && drawing.contains("a3 crashes at 40.000 s"), "{drawing}");
        assert!(drawing.contains("class=\"conflict\"") && drawing.contains("class=\"doubt\""));
    }
}

#[test]
fn without_a_fault_there_is_one_colour_and_no_fence() {
    let mut mesh = Mesh::builder(1).nodes(4).record().build();
    mesh.register("n1", "orders", "o1");
    mesh.run_for(secs(5));
    let recording = mesh.recording().unwrap();
    let drawing = Page::of(&recording, &mesh.report()).svg(Scale::Clock);
    assert_eq!((count(&drawing, "truth t1"), count(&drawing, "class=\"fence\"")), (1, 1), "the legend's only");
    assert_eq!(recording.writes[0].seen_us.iter().flatten().count(), 4);
}

#[test]
fn a_cut_that_lasts_to_the_end_and_a_one_way_cut_are_drawn_as_such() {
    let mut mesh = Mesh::builder(1).nodes(2).record().build();
    mesh.run_for(secs(1));
    mesh.cut_one_way(&["n1"], &["n2"]);
    mesh.run_for(secs(9));
    let recording = mesh.recording().unwrap();
    let drawing = Page::of(&recording, &mesh.report()).svg(Scale::Clock);
    assert!(drawing.contains("never healed") && drawing.contains("n1 →✕ n2"), "{drawing}");
    assert_eq!(count(&drawing, "class=\"fence-way\""), 1);
}

#[test]
fn nothing_a_run_says_gets_into_the_page_as_markup() {
    let text = r#"
        name = "<b>bold</b>"
        [mesh]
        nodes = 2
        [[step]]
        at = "1s"
        do = "put"
        node = "n1"
        key = "limits"
        value = "</title><script>alert('1')</script>"
        [[step]]
        at = "2s"
        do = "expect-config"
        key = "limits"
        value = "<img src=x>"
    "#;
    let played = Played::of(text, 1);
    let page = played.page();
    for text in [page.html(), page.svg(Scale::Events)] {
        assert!(!text.contains("<b>bold") && !text.contains("<script>alert") && !text.contains("<img"), "{text}");
        assert!(text.contains("&lt;b&gt;bold&lt;/b&gt;") && text.contains("&lt;/title&gt;&lt;script&gt;"), "{text}");
    }
}

#[test]
fn a_large_mesh_and_a_long_run_make_a_page_of_bounded_size() {
    let mut mesh = Mesh::builder(5).nodes(30).zones(["a", "b", "c"]).record().build();
    for round in 0..60 {
        mesh.put_config(&format!("n{}", round % 30 + 1), &format!("c{}", round % 7), &format!("{round}"));
        mesh.run_for(secs(10));
    }
    let recording = mesh.recording().unwrap();
    let page = Page::of(&recording, &mesh.report()).html();
    assert!(page.len() < 6_000_000, "{} bytes", page.len());
}
