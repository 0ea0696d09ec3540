//! REST, metrics and the page. docs/API.md and `openapi.json` say what is asked and answered.
//!
//! | module | what |
//! |---|---|
//! | `gate` | who asks, and whether they may; what every answer carries |
//! | `answers` | what is looked at |
//! | `actions` | what is done |
//! | `approvals` | what waits for a second person |
//! | `asking` | commands that are run to answer a question |
//! | `metrics` | for Prometheus |
//! | `page` | the dashboard's files |

mod actions;
mod answers;
mod approvals;
mod asking;
mod gate;
mod metrics;
mod page;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

use crate::access::Doorkeeper;
use crate::service::Shared;
use crate::share::Shares;

pub use gate::Peer;

/// The longest body of a request, in bytes.
const BODY_MOST: usize = 64 << 10;
/// How many streams of events one caller has at once: windows of the dashboard. Each holds a connection for as long as its reader likes.
const STREAMS_EACH: usize = 16;

/// What answers are made with.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub shared: Arc<Shared>,
    pub door: Arc<Doorkeeper>,
    pub asking: Arc<asking::Asking>,
    /// Who is told of changes.
    pub listeners: Arc<Shares<String>>,
}

/// All routes.
pub fn router(shared: Arc<Shared>) -> Router {
    let door = Arc::new(Doorkeeper::of(&shared.serve));
    let asking = Arc::new(asking::Asking::new(&shared));
    let api = Api { shared, door, asking, listeners: Arc::new(Shares::of(STREAMS_EACH)) };
    let v1 = Router::new()
        .route("/session", get(gate::session).post(gate::log_in).delete(gate::log_out))
        .route("/overview", get(answers::overview))
        .route("/machines", get(answers::machines))
        .route("/machines/{name}", get(answers::machine))
        .route("/machines/{name}/points", get(answers::points))
        .route("/machines/{name}/calendar", get(answers::calendar))
        .route("/machines/{name}/actions", post(actions::act))
        .route("/jobs", get(answers::jobs))
        .route("/jobs/{id}", get(answers::job))
        .route("/jobs/{id}/cancel", post(actions::cancel))
        .route("/approvals", get(approvals::list))
        .route("/approvals/{id}", get(approvals::one).post(approvals::decide))
        .route("/drills", get(answers::drills))
        .route("/drills/{id}/page.html", get(answers::drill_page))
        .route("/drills/{id}/screen.png", get(answers::drill_screen))
        .route("/points/{backup}/{machine}/{point}/files", get(answers::files))
        .route("/points/{backup}/{machine}/{point}/file", get(answers::file))
        .route("/audit", get(answers::audit))
        .route("/events", get(answers::events))
        .route("/pause", post(actions::pause))
        .route("/resume", post(actions::resume))
        .route("/reload", post(actions::reload))
        .route("/openapi.json", get(page::openapi))
        .fallback(gate::nothing_there);
    Router::new()
        .nest("/api/v1", v1)
        .route("/metrics", get(metrics::metrics))
        .route("/", get(page::index))
        .route("/{file}", get(page::file))
        .fallback(gate::nothing_there)
        .method_not_allowed_fallback(gate::not_like_that)
        .layer(from_fn_with_state(api.clone(), gate::gate))
        .layer(DefaultBodyLimit::max(BODY_MOST))
        .with_state(api)
}
