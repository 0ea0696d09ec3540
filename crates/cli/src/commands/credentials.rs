//! Secrets that come as variables, or as credentials of systemd by the same names: those are in nobody's environment.

use std::env;
use std::io::Read as _;
use std::path::Path;

use keyframe_repo::Error;
use keyframe_types::secret::credentials;
use zeroize::Zeroizing;

use super::repository::usage;

/// The longest that is read, in bytes: more than systemd hands over is no credential.
const MOST: u64 = 1 << 20;

/// What a variable says, or the credential of that name.
pub fn value(name: &str) -> Result<Option<Zeroizing<String>>, Error> {
    let (text, whose) = match env::var_os(name) {
        Some(text) => (text.into_string().ok(), name.to_owned()),
        None => {
            let Some(path) = credentials().map(|dir| dir.join(name)) else { return Ok(None) };
            match read(&path) {
                Ok(text) => (String::from_utf8(text).ok(), path.display().to_string()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(Error::Io { action: "read", path, source }),
            }
        }
    };
    let text = text.ok_or_else(|| usage(&format!("{whose} is no UTF-8")))?;
    if text.is_empty() { Err(usage(&format!("{whose} is empty"))) } else { Ok(Some(Zeroizing::new(text))) }
}

/// What a store behind `s3://` is told: `AWS_…` variables, and the credentials of such names that no variable has.
pub fn of_s3() -> Vec<(String, String)> {
    let is_ours = |name: &std::ffi::OsString| name.to_str().is_some_and(|name| name.starts_with("AWS_"));
    let named = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    let mut all: Vec<(String, String)> = env::vars_os().filter(|(name, _)| is_ours(name)).filter_map(named).collect();
    let files = credentials().and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten().flatten();
    for file in files.filter(|file| is_ours(&file.file_name())) {
        let (Ok(name), Ok(text)) = (file.file_name().into_string(), read(&file.path())) else { continue };
        if let Ok(text) = String::from_utf8(text)
            && !all.iter().any(|(known, _)| *known == name)
        {
            all.push((name, text));
        }
    }
    all
}

/// A credential without the end of its last line.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    std::fs::File::open(path)?.take(MOST).read_to_end(&mut text)?;
    let end = text.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1);
    text.truncate(end);
    Ok(text)
}
