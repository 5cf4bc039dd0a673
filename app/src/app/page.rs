//! The page's files, which are built into the program.

use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::report_page::CHART_STYLE;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Path, type and text of each file.
pub const FILES: [(&str, &str, &str); 16] = [
    ("/", HTML, include_str!("page/index.html")),
    ("/style.css", CSS, include_str!("page/style.css")),
    ("/chart.css", CSS, CHART_STYLE),
    ("/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
    ("/main.js", SCRIPT, include_str!("page/main.js")),
    ("/page.js", SCRIPT, include_str!("page/page.js")),
    ("/engine.js", SCRIPT, include_str!("page/engine.js")),
    ("/dom.js", SCRIPT, include_str!("page/dom.js")),
    ("/model.js", SCRIPT, include_str!("page/model.js")),
    ("/chat.js", SCRIPT, include_str!("page/chat.js")),
    ("/answer.js", SCRIPT, include_str!("page/answer.js")),
    ("/many.js", SCRIPT, include_str!("page/many.js")),
    ("/align.js", SCRIPT, include_str!("page/align.js")),
    ("/compare.js", SCRIPT, include_str!("page/compare.js")),
    ("/rule.js", SCRIPT, include_str!("page/rule.js")),
    ("/take.js", SCRIPT, include_str!("page/take.js")),
];

/// What the page may load and ask: this server alone.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The same for a report, whose style is in the page. It has no script.
const REPORT_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

fn answer(kind: &'static str, policy: &'static str, text: impl IntoResponse) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Another version of the program has another page.
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, text).into_response()
}

/// One of the page's files.
pub fn file(kind: &'static str, text: &'static str) -> Response {
    answer(kind, POLICY, text)
}

/// A report.
pub fn report(text: String) -> Response {
    answer(HTML, REPORT_POLICY, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing is loaded from elsewhere, no script or style is in the page, and every import is a file.
    #[test]
    fn the_page_is_whole() {
        for (path, _, text) in FILES {
            for outside in ["http://", "https://", "@import", "url(", "eval(", "innerHTML", "document.write"]
            {
                let own = ["http://www.w3.org/2000/svg"];
                let rest = own.iter().fold(text.to_owned(), |text, own| text.replace(own, ""));
                assert!(!rest.contains(outside), "{path}: {outside}");
            }
            for line in text.lines().filter(|line| line.starts_with("import ")) {
                let name = line.split('"').nth(1).unwrap_or_default().trim_start_matches('.');
                assert!(FILES.iter().any(|(known, ..)| *known == name), "{path}: {line}");
            }
            for attribute in [" style=\"", " onclick=", "<style", "<script>"] {
                assert!(!text.contains(attribute), "{path}: {attribute}");
            }
            assert!(text.lines().all(|line| line.chars().count() <= 110), "{path}: a line over 110 columns");
        }
    }
}
