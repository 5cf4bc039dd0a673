//! Line charts as SVG, without scripts or external fonts and styles. The page's style sets the colours.

use std::fmt::Write;

/// One line of a chart.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// (x, y), in the order in which they are joined; more than 600 in the order of x, because they are
    /// thinned. NaN and infinities are left out.
    pub points: Vec<(f64, f64)>,
    /// Whether the line is dashed, as for held-out figures.
    pub dashed: bool,
}

/// A line chart.
#[derive(Debug, Clone, Default)]
pub struct Chart {
    /// Its heading.
    pub title: String,
    /// One sentence on how to read it.
    pub note: String,
    /// The lines; those without points are left out.
    pub series: Vec<Series>,
    /// Whether y is on a logarithmic scale; values at or below 0 are then left out.
    pub log: bool,
}

/// Colours of an SVG file by itself, which cannot use a page's. Not all viewers know `var()`.
const PALETTE: [&str; COLOURS] =
    ["#1f6f9f", "#c2541b", "#2f7d4f", "#8a4fa3", "#a58300", "#b0305c", "#4f6d7a", "#6b5b3e"];

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 28.0;
/// Columns that a line is thinned to. Each keeps its lowest and its highest point, so that no peak is lost.
const COLUMNS: usize = 300;
/// Number of colours on the page. Further lines reuse them from the first, dashed.
const COLOURS: usize = 8;

impl Chart {
    /// The lines, with only the points that can be drawn; lines without any are left out.
    fn drawn(&self) -> Vec<Series> {
        let keep = |&(x, y): &(f64, f64)| x.is_finite() && y.is_finite() && (!self.log || y > 0.0);
        let filtered = self.series.iter().map(|series| Series {
            points: series.points.iter().copied().filter(keep).collect(),
            ..series.clone()
        });
        filtered.filter(|series| !series.points.is_empty()).collect()
    }

    /// Whether there is nothing to draw.
    pub fn is_empty(&self) -> bool {
        self.drawn().is_empty()
    }

    /// The name and the CSS class of each line that is drawn.
    pub fn legend(&self) -> Vec<(String, String)> {
        self.drawn().iter().enumerate().map(|(i, s)| (s.name.clone(), class(i, s))).collect()
    }

    /// The chart as an SVG element.
    pub fn svg(&self) -> String {
        let series = self.drawn();
        let value = |y: f64| if self.log { y.log10() } else { y };
        let all = || series.iter().flat_map(|s| &s.points);
        let (x0, x1) = range(all().map(|p| p.0), 0.0);
        let (y0, y1) = range(all().map(|p| value(p.1)), 0.05);
        let px = |x: f64| LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
        let py = |y: f64| HEIGHT - BOTTOM - (value(y) - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\"><g class=\"grid\">",
            escaped(&self.title)
        );
        let ticks_y: Vec<f64> = if self.log { decades(y0, y1) } else { ticks(y0, y1, 5) };
        for y in ticks_y {
            let at = py(y);
            let _ = write!(out, "<path d=\"M{LEFT} {at:.1}H{:.1}\"/>", WIDTH - RIGHT);
            let _ = write!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                at + 4.0,
                short(y)
            );
        }
        for x in ticks(x0, x1, 8) {
            let (at, below) = (px(x), HEIGHT - BOTTOM + 18.0);
            let _ = write!(
                out,
                "<text x=\"{at:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{}</text>",
                short(x)
            );
        }
        out += "</g>";
        for (i, s) in series.iter().enumerate() {
            let class = class(i, s);
            let thinned = thin(&s.points, x0, x1);
            let path: Vec<String> =
                thinned.iter().map(|&(x, y)| format!("{:.1} {:.1}", px(x), py(y))).collect();
            let _ = write!(out, "<path class=\"line {class}\" d=\"M{}\"/>", path.join("L"));
            if thinned.len() <= 24 {
                for &(x, y) in &thinned {
                    let (cx, cy) = (px(x), py(y));
                    let _ = write!(
                        out,
                        "<circle class=\"dot {class}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\"><title>{}: {} \
                         at {}</title></circle>",
                        escaped(&s.name),
                        short(y),
                        short(x)
                    );
                }
            }
        }
        out + "</svg>"
    }

    /// The chart with its title and its legend, as an SVG file.
    pub fn file(&self) -> String {
        let legend = self.legend();
        let rows = legend.len().div_ceil(3);
        let height = 300 + 22 * rows;
        let mut style = String::from(
            ".grid path{stroke:#d5dada;fill:none}.grid text{fill:#5b666d;font:12px sans-serif}\
             .line{fill:none;stroke-width:1.75}.dashed{stroke-dasharray:5 4}\
             circle.dashed{stroke-dasharray:none}.name{font:13px sans-serif;fill:#1c2226}rect{fill:#fff}",
        );
        for (i, colour) in PALETTE.iter().enumerate() {
            let _ = write!(style, ".line.c{i}{{stroke:{colour}}}.dot.c{i}{{fill:{colour}}}");
        }
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 640 {height}\"><style>{style}</style>\
             <rect width=\"640\" height=\"{height}\"/>\
             <text class=\"name\" x=\"12\" y=\"22\" font-weight=\"600\">{}</text>\
             <svg y=\"30\" width=\"640\" height=\"260\">{}</svg>",
            escaped(&self.title),
            self.svg()
        );
        for (i, (name, class)) in legend.iter().enumerate() {
            let (x, y) = (16 + 206 * (i % 3), 310 + 22 * (i / 3));
            let _ = write!(
                out,
                "<path class=\"line {class}\" d=\"M{x} {}h22\"/>\
                 <text class=\"name\" x=\"{}\" y=\"{y}\">{}</text>",
                y - 4,
                x + 30,
                escaped(name)
            );
        }
        out + "</svg>\n"
    }
}

fn class(index: usize, series: &Series) -> String {
    let dashed = if series.dashed || index >= COLOURS { " dashed" } else { "" };
    format!("c{}{dashed}", index % COLOURS)
}

/// The smallest and the largest value, widened on both sides by the share `room` of their distance. The two
/// are never equal.
fn range(values: impl Iterator<Item = f64>, room: f64) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    if high - low <= 1e-9 * high.abs() {
        let half = if high == 0.0 { 1.0 } else { 0.5 * high.abs() };
        return (low - half, high + half);
    }
    let room = room * (high - low);
    (low - room, high + room)
}

/// Round numbers between `low` and `high`, about `count`.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let raw = (high - low) / count as f64;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= raw).unwrap_or(raw);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// Powers of ten between 10^`low` and 10^`high`; below two decades also 2 and 5 times these.
fn decades(low: f64, high: f64) -> Vec<f64> {
    let steps: &[f64] = if high - low < 2.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let every = ((high - low) / 6.0).ceil().max(1.0) as usize;
    let exponents = (low.floor() as i32..=high.ceil() as i32).step_by(every);
    let all = exponents.flat_map(|e| steps.iter().map(move |m| m * 10f64.powi(e)));
    all.filter(|v| (low..=high).contains(&v.log10())).collect()
}

/// At most two points per column, plus the first and the last point.
fn thin(points: &[(f64, f64)], x0: f64, x1: f64) -> Vec<(f64, f64)> {
    if points.len() <= 2 * COLUMNS {
        return points.to_vec();
    }
    let column = |x: f64| (((x - x0) / (x1 - x0) * COLUMNS as f64) as usize).min(COLUMNS - 1);
    let mut thinned: Vec<(f64, f64)> = vec![points[0]];
    for part in points.chunk_by(|a, b| column(a.0) == column(b.0)) {
        let by_y = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let (low, high) = (part.iter().min_by(by_y), part.iter().max_by(by_y));
        let mut both: Vec<(f64, f64)> = [low, high].into_iter().flatten().copied().collect();
        both.sort_by(|a, b| a.0.total_cmp(&b.0));
        both.dedup();
        thinned.extend(both);
    }
    thinned.push(points[points.len() - 1]);
    thinned
}

/// A number in a few characters: `0.25`, `12k`, `1.0e-5`.
pub fn short(value: f64) -> String {
    let size = value.abs();
    let text = match size {
        _ if size == 0.0 => "0".into(),
        _ if !(1e-4..1e6).contains(&size) => format!("{value:.1e}"),
        _ if size >= 1e4 => format!("{:.0}k", value / 1e3),
        _ if size >= 100.0 => format!("{value:.0}"),
        _ => format!("{value:.4}"),
    };
    if text.contains('.') && !text.contains('e') {
        text.trim_end_matches('0').trim_end_matches('.').into()
    } else {
        text
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let series = vec![Series { name: "a<b".into(), points, dashed: false }];
        Chart { title: "t".into(), series, ..Chart::default() }
    }

    #[test]
    fn many_points_are_thinned_and_no_peak_is_lost() {
        let points: Vec<(f64, f64)> =
            (0..10_000).map(|i| (f64::from(i), f64::from(u8::from(i == 7777)))).collect();
        let thinned = thin(&points, 0.0, 9999.0);
        assert!(thinned.len() <= 2 * COLUMNS + 2 && thinned.contains(&(7777.0, 1.0)));
        assert_eq!((thinned[0], thinned[thinned.len() - 1]), (points[0], points[9999]));
        assert!(thinned.windows(2).all(|pair| pair[0].0 <= pair[1].0));
        assert!(chart(points).svg().len() < 20_000);
    }

    #[test]
    fn odd_values_make_no_odd_chart() {
        for points in
            [vec![], vec![(0.0, f64::NAN)], vec![(1.0, 5.0)], vec![(0.0, 0.0), (1.0, f64::INFINITY)]]
        {
            let svg = chart(points).svg();
            assert!(!svg.contains("NaN") && !svg.contains("inf") && svg.ends_with("</svg>"), "{svg}");
        }
        assert!(chart(vec![(0.0, f64::NAN)]).is_empty());
        assert!(chart(vec![(1.0, 2.0)]).svg().contains("a&lt;b: 2 at 1"));
        let log = Chart { log: true, ..chart(vec![(0.0, 1.0), (1.0, 1000.0), (2.0, 0.0)]) };
        assert!(log.svg().contains(">100<") && !log.svg().contains("NaN"));
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 60.0, 8), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        assert_eq!(
            ticks(-0.3, 0.7, 5).iter().map(|t| short(*t)).collect::<Vec<_>>(),
            ["-0.2", "0", "0.2", "0.4", "0.6"]
        );
        assert_eq!(
            ["12345", "0.00001", "0.5", "100"].map(|t| short(t.parse().unwrap())),
            ["12k", "1.0e-5", "0.5", "100"]
        );
    }
}
