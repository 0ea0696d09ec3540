//! The dashboard's files, in the program itself.

use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};

use super::gate::Refusal;

macro_rules! files {
    ($($name:literal),* $(,)?) => { &[$(($name, include_bytes!(concat!("page/", $name)))),*] };
}

/// Name and content.
const FILES: &[(&str, &[u8])] = files![
    "index.html",
    "actions.js",
    "alerts.js",
    "api.js",
    "audit.js",
    "calendar.js",
    "chart.js",
    "dialog.js",
    "dom.js",
    "drills.js",
    "favicon.svg",
    "files.js",
    "format.js",
    "icons.js",
    "job.js",
    "jobs.js",
    "login.js",
    "machine.js",
    "machines.js",
    "more.js",
    "owed.js",
    "page.css",
    "page.js",
    "parts.js",
    "points.js",
    "policies.js",
    "shell.js",
    "space.js",
    "state.js",
    "tree.js",
];

/// What is asked and answered, as OpenAPI 3.1.
pub const OPENAPI: &str = include_str!("openapi.json");

pub async fn index() -> Result<Response, Refusal> {
    file(Path("index.html".to_owned())).await
}

pub async fn file(Path(name): Path<String>) -> Result<Response, Refusal> {
    let found = FILES.iter().find(|(known, _)| *known == name);
    let (_, content) = found.ok_or_else(|| Refusal::nothing("there is nothing of that name"))?;
    let kind = match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    };
    Ok(([(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache")], *content).into_response())
}

pub async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}
