//! Questions that a command answers: what is in a repository, what a deletion would do. Few at once, bounded in time and size.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::gate::Refusal;
use crate::service::Shared;

/// How many commands answer at once.
const AT_ONCE: usize = 4;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer, in bytes.
const MOST: u64 = 64 << 20;

/// Who runs them.
#[derive(Debug)]
pub struct Asking {
    program: PathBuf,
    home: PathBuf,
    room: Arc<Semaphore>,
}

/// What a command answered.
#[derive(Debug)]
pub struct Answer {
    /// Its exit status.
    pub exit: Option<i32>,
    /// What it wrote to its standard output.
    pub output: Vec<u8>,
    /// What it told a person.
    pub said: String,
}

impl Asking {
    pub fn new(shared: &Shared) -> Self {
        Self {
            program: shared.program.clone(),
            home: shared.home.root().to_owned(),
            room: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Asks.
    pub async fn ask(&self, arguments: Vec<String>) -> Result<Answer, Refusal> {
        let away = || Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too much is asked at once");
        let permit = tokio::time::timeout(PATIENCE, Arc::clone(&self.room).acquire_owned()).await;
        let permit = permit.map_err(|_| away())?.map_err(|_| away())?;
        let mut command = Command::new(&self.program);
        command.arg("--home").arg(&self.home).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let asked = tokio::task::spawn_blocking(move || {
            // As long as the command: who asked may have gone away.
            let _permit = permit;
            run(command)
        });
        let asked = asked.await;
        let failed = |what: String| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, what);
        asked
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(format!("a command cannot be run: {error}")))
    }

    /// Asks for a document.
    pub async fn document(&self, mut arguments: Vec<String>) -> Result<Value, Refusal> {
        arguments.insert(0, "--json".to_owned());
        let answer = self.ask(arguments).await?;
        let document: Option<Value> = serde_json::from_slice(&answer.output).ok();
        match (answer.exit, document) {
            (Some(0 | 3), Some(document)) => Ok(document),
            (exit, document) => {
                let told = document.as_ref().and_then(|document| document["error"].as_str());
                let what =
                    told.map_or_else(|| format!("it ended with {exit:?}: {}", answer.said.trim()), str::to_owned);
                let status = if exit == Some(10) { StatusCode::NOT_FOUND } else { StatusCode::BAD_GATEWAY };
                Err(Refusal::new(status, what))
            }
        }
    }
}

fn run(mut command: Command) -> std::io::Result<Answer> {
    let mut child = command.spawn()?;
    let (output, said) = (child.stdout.take(), child.stderr.take());
    let read = |from: Option<Box<dyn std::io::Read + Send>>, most: u64| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = from.map(|from| from.take(most).read_to_end(&mut bytes));
            bytes
        })
    };
    let output = read(output.map(|from| Box::new(from) as _), MOST + 1);
    let said = read(said.map(|from| Box::new(from) as _), 64 << 10);
    let exit = ended(&mut child)?;
    let output = output.join().unwrap_or_default();
    if output.len() as u64 > MOST {
        return Err(std::io::Error::other("what it tells is longer than 64 MiB: use the command line"));
    }
    let said = String::from_utf8_lossy(&said.join().unwrap_or_default()).into_owned();
    Ok(Answer { exit, output, said })
}

fn ended(child: &mut Child) -> std::io::Result<Option<i32>> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if begun.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
