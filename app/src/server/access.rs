//! Who may ask the server.
//!
//! A page in the user's browser can send requests to this machine. Two checks keep foreign pages out: `Host`
//! must name this machine, so that no other domain can be pointed here (DNS rebinding), and a request that a
//! page sends must come from the server's own page.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::protocol::Refusal;

/// The rules of access.
#[derive(Debug, Clone)]
pub struct Access {
    /// Whether only this machine is listened to.
    pub loopback: bool,
    /// The key that requests must give.
    pub key: Option<String>,
}

impl Access {
    /// Why a request with these headers is refused.
    ///
    /// # Errors
    /// The refusal.
    pub fn check(&self, headers: &HeaderMap, path: &str) -> Result<(), Refusal> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text("host").unwrap_or_default();
        if self.loopback && !is_loopback(host) {
            let message = format!("Host is {host:?}; this server answers only as localhost or 127.0.0.1");
            return Err(Refusal::new(StatusCode::FORBIDDEN, message).coded("wrong_host"));
        }
        let foreign = match text("origin") {
            Some(origin) => origin.split_once("://").is_none_or(|(_, authority)| authority != host),
            None => text("sec-fetch-site") == Some("cross-site"),
        };
        if foreign {
            let message = "a page of another site may not use this server";
            return Err(Refusal::new(StatusCode::FORBIDDEN, message).coded("wrong_origin"));
        }
        let Some(key) = self.key.as_deref().filter(|_| path != "/health") else { return Ok(()) };
        let given = text("authorization").and_then(|value| value.strip_prefix("Bearer "));
        if given.is_some_and(|given| same(given.trim(), key)) {
            return Ok(());
        }
        let found = if given.is_some() { "another key" } else { "none" };
        let message =
            format!("expected the server's API key as \"Authorization: Bearer KEY\", found {found}");
        Err(Refusal::new(StatusCode::UNAUTHORIZED, message).coded("invalid_api_key"))
    }
}

/// The middleware of [`Access::check`].
pub async fn guard(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    match access.check(request.headers(), request.uri().path()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Whether a `Host` header names this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.trim_end_matches('.');
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Whether two texts are the same, in a time that does not depend on where they differ.
fn same(a: &str, b: &str) -> bool {
    let differing = a.bytes().zip(b.bytes()).fold(0, |differing, (a, b)| differing | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differing) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        all.iter().map(|&(name, value)| (name.try_into().unwrap(), value.parse().unwrap())).collect()
    }

    fn code(access: &Access, all: &[(&'static str, &str)]) -> Option<String> {
        access.check(&headers(all), "/v1/models").err().and_then(|refusal| refusal.code)
    }

    #[test]
    fn only_this_machines_own_pages_and_programs_may_ask() {
        let access = Access { loopback: true, key: None };
        let allowed = |all: &[(&'static str, &str)]| assert_eq!(code(&access, all), None, "{all:?}");
        let refused = |all: &[(&'static str, &str)], why: &str| {
            assert_eq!(code(&access, all).as_deref(), Some(why), "{all:?}");
        };
        for host in ["localhost:8080", "127.0.0.1:8080", "127.0.0.2", "[::1]:8080", "LOCALHOST.", "localhost"]
        {
            allowed(&[("host", host)]);
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.nip.io",
            "10.0.0.1",
            "",
        ] {
            refused(&[("host", host)], "wrong_host");
        }
        refused(&[], "wrong_host");
        let host = ("host", "localhost:8080");
        allowed(&[host, ("origin", "http://localhost:8080")]);
        for origin in
            ["http://evil.example", "null", "http://localhost:3000", "http://127.0.0.1:8080", "https://"]
        {
            refused(&[host, ("origin", origin)], "wrong_origin");
        }
        refused(&[host, ("sec-fetch-site", "cross-site")], "wrong_origin");
        allowed(&[host, ("sec-fetch-site", "same-origin")]);
    }

    #[test]
    fn a_key_is_asked_for_where_there_is_one() {
        let access = Access { loopback: false, key: Some("s3cret".into()) };
        let with = |value| code(&access, &[("host", "box.lan:8080"), ("authorization", value)]);
        assert_eq!(with("Bearer s3cret"), None);
        for wrong in ["Bearer s3cre", "Bearer s3cret2", "s3cret", "Basic s3cret", "Bearer "] {
            assert_eq!(with(wrong).as_deref(), Some("invalid_api_key"), "{wrong}");
        }
        assert_eq!(code(&access, &[("host", "box.lan")]).as_deref(), Some("invalid_api_key"));
        assert!(access.check(&headers(&[("host", "box.lan")]), "/health").is_ok());
    }
}
