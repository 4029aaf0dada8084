//! The chart of a comparison: p99 TTFT by load, one line per policy, as SVG.

use std::fmt::Write;

use crate::summary::Summary;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 170.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Distinguishable with colour blindness (Okabe and Ito 2008).
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"];

struct Axes {
    load: (f64, f64),
    log_ms: (f64, f64),
}

impl Axes {
    fn of(runs: &[Summary]) -> Axes {
        let range = |values: Vec<f64>| {
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            if low < high { (low, high) } else { (low - 0.5, low + 0.5) }
        };
        let ms = runs.iter().map(|run| run.ttft_ms.p99.max(1.0).log10()).collect();
        Axes { load: range(runs.iter().map(|run| run.load).collect()), log_ms: range(ms) }
    }

    fn x(&self, load: f64) -> f64 {
        let share = (load - self.load.0) / (self.load.1 - self.load.0);
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, ms: f64) -> f64 {
        let share = (ms.max(1.0).log10() - self.log_ms.0) / (self.log_ms.1 - self.log_ms.0);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }
}

/// Draws `runs` as SVG; an empty frame without runs.
pub fn chart(runs: &[Summary]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">p99 time to first token, by load</text>\n"
    );
    if !runs.is_empty() {
        let axes = Axes::of(runs);
        // Writing to a String cannot fail.
        let _ = grid(&mut svg, &axes, runs);
        let _ = lines(&mut svg, &axes, runs);
    }
    svg.push_str("</svg>\n");
    svg
}

fn grid(svg: &mut String, axes: &Axes, runs: &[Summary]) -> std::fmt::Result {
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    let decades = axes.log_ms.0.floor() as i32..=axes.log_ms.1.ceil() as i32;
    let ticks = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(decade)));
    for ms in ticks.filter(|ms| (axes.log_ms.0..=axes.log_ms.1).contains(&ms.log10())) {
        let y = axes.y(ms);
        writeln!(svg, "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#ddd\"/>")?;
        let (x, y) = (LEFT - 8.0, y + 4.0);
        let s = ms / 1000.0;
        writeln!(svg, "<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{s} s</text>")?;
    }
    let mut loads: Vec<f64> = runs.iter().map(|run| run.load).collect();
    loads.sort_by(f64::total_cmp);
    loads.dedup();
    for load in loads {
        let (x, y) = (axes.x(load), bottom + 20.0);
        writeln!(svg, "<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"#eee\"/>")?;
        writeln!(svg, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{load}</text>")?;
    }
    Ok(())
}

fn lines(svg: &mut String, axes: &Axes, runs: &[Summary]) -> std::fmt::Result {
    let mut names: Vec<&str> = Vec::new();
    for run in runs {
        if !names.contains(&run.policy) {
            names.push(run.policy);
        }
    }
    for (at, name) in names.iter().enumerate() {
        let mut own: Vec<&Summary> = runs.iter().filter(|run| run.policy == *name).collect();
        own.sort_by(|a, b| a.load.total_cmp(&b.load));
        let colour = COLOURS[at % COLOURS.len()];
        let (width, dash) = match *name {
            "predicted" => (3.5, "none"),
            "oracle" => (2.0, "6 4"),
            _ => (1.5, "none"),
        };
        let points: Vec<String> = own
            .iter()
            .map(|run| format!("{:.1},{:.1}", axes.x(run.load), axes.y(run.ttft_ms.p99)))
            .collect();
        writeln!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
             stroke-dasharray=\"{dash}\" points=\"{}\"/>",
            points.join(" ")
        )?;
        let (x, y) = (WIDTH - RIGHT + 20.0, TOP + 20.0 * (at as f64 + 1.0));
        writeln!(svg, "<text x=\"{x}\" y=\"{y}\" fill=\"{colour}\">{name}</text>")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Distribution;

    #[test]
    fn a_chart_has_a_line_for_each_policy_and_no_broken_numbers() {
        assert!(chart(&[]).ends_with("</svg>\n"));
        let run = |policy, load, p99| Summary {
            policy,
            load,
            ttft_ms: Distribution { p99, ..Distribution::default() },
            ..Summary::default()
        };
        let one = chart(&[run("predicted", 0.5, 700.0)]);
        let several = chart(&[
            run("predicted", 0.5, 700.0),
            run("random", 0.5, 0.0),
            run("random", 0.9, 9e5),
        ]);
        assert_eq!(one.matches("<polyline").count(), 1);
        assert_eq!(several.matches("<polyline").count(), 2);
        assert!(!several.contains("NaN") && !one.contains("NaN"));
    }
}
