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
    "actions.js",
    "alerts.js",
    "api.js",
    "approvals.js",
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
    "index.html",
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_file_of_the_page_is_served_and_no_other() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/api/page");
        let there: BTreeSet<String> =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(FILES.iter().map(|(name, _)| (*name).to_owned()).collect::<BTreeSet<_>>(), there);
    }

    #[test]
    fn nothing_on_it_comes_from_elsewhere_or_runs_inline() {
        for (name, content) in FILES {
            let text = std::str::from_utf8(content).unwrap();
            for forbidden in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " style=\"", " onclick="]
            {
                assert!(!text.contains(forbidden), "{name} has {forbidden}");
            }
            let links = text.matches("http://").count() + text.matches("https://").count();
            let names_of_languages = text.matches("http://www.w3.org/").count();
            assert_eq!(links, names_of_languages, "{name} names another host");
        }
    }
}
