//! apt's sources: reading both notations, and writing the one stanza that set-up adds.
//!
//! Source: sources.list(5), both "one-line-style" and "deb822-style".

use std::fmt::Write;

/// One source of packages, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AptSource {
    /// `deb`, `deb-src`.
    pub types: Vec<String>,
    /// Mirrors.
    pub uris: Vec<String>,
    /// Suites, such as `bookworm` and `bookworm-updates`.
    pub suites: Vec<String>,
    /// Components, such as `main`.
    pub components: Vec<String>,
    /// `Signed-By`, a path or a whole key, with line breaks as they were.
    pub signed_by: Option<String>,
    /// `Trusted: yes`: a mirror whose signature is not checked.
    pub trusted: bool,
}

impl AptSource {
    /// Whether it gives binary packages of that suite's main component.
    pub fn serves(&self, suite: &str) -> bool {
        let has = |list: &[String], word: &str| list.iter().any(|found| found == word);
        has(&self.types, "deb") && has(&self.suites, suite) && has(&self.components, "main")
    }

    /// The same mirror, trusted by the same key, for binary packages of another suite's main component.
    #[must_use]
    pub fn for_suite(&self, suite: &str) -> Self {
        let one = |word: &str| vec![word.to_owned()];
        Self { types: one("deb"), suites: one(suite), components: one("main"), ..self.clone() }
    }

    /// As a stanza of a `.sources` file, under a comment.
    pub fn to_deb822(&self, comment: &str) -> String {
        format!("# {comment}\n{}", self.to_stanza())
    }

    /// As a stanza of a `.sources` file.
    pub fn to_stanza(&self) -> String {
        let mut text = String::new();
        let fields =
            [("Types", &self.types), ("URIs", &self.uris), ("Suites", &self.suites), ("Components", &self.components)];
        for (name, words) in fields {
            let _infallible = writeln!(text, "{name}: {}", words.join(" "));
        }
        if let Some(key) = &self.signed_by {
            let _infallible = writeln!(text, "Signed-By: {key}");
        }
        if self.trusted {
            text.push_str("Trusted: yes\n");
        }
        text
    }
}

/// Reads a `.list` file. Lines that are no sources are skipped.
pub fn parse_one_line(text: &str) -> Vec<AptSource> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<AptSource> {
    let line = line.split('#').next()?.trim();
    let (kind, rest) = line.split_once(char::is_whitespace)?;
    if !matches!(kind, "deb" | "deb-src") {
        return None;
    }
    let rest = rest.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    let mut source = AptSource {
        types: vec![kind.to_owned()],
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
        ..AptSource::default()
    };
    for (key, value) in options.split_whitespace().filter_map(|option| option.split_once('=')) {
        match key {
            "signed-by" => source.signed_by = Some(value.to_owned()),
            "trusted" => source.trusted = value == "yes",
            _ => {}
        }
    }
    Some(source)
}

/// Reads a `.sources` file. Disabled stanzas and those that lack a field are skipped.
pub fn parse_deb822(text: &str) -> Vec<AptSource> {
    let uncommented = text.lines().filter(|line| !line.starts_with('#'));
    let mut stanzas = vec![Vec::new()];
    for line in uncommented {
        match (line.trim().is_empty(), stanzas.last_mut()) {
            (false, Some(stanza)) => stanza.push(line),
            _ => stanzas.push(Vec::new()),
        }
    }
    stanzas.iter().filter_map(|stanza| parse_stanza(stanza)).collect()
}

fn parse_stanza(lines: &[&str]) -> Option<AptSource> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in lines {
        if line.starts_with([' ', '\t']) {
            let (_, value) = fields.last_mut()?;
            value.push('\n');
            value.push_str(line);
        } else {
            let (name, value) = line.split_once(':')?;
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let field = |name: &str| fields.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    let words = |name: &str| field(name).map(|value| value.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    if field("enabled").is_some_and(|value| value.eq_ignore_ascii_case("no")) {
        return None;
    }
    Some(AptSource {
        types: words("types")?,
        uris: words("uris")?,
        suites: words("suites")?,
        components: words("components").unwrap_or_default(),
        signed_by: field("signed-by").map(str::to_owned),
        trusted: field("trusted").is_some_and(|value| value.eq_ignore_ascii_case("yes")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER_IMAGE: &str = "\
Types: deb
# http://snapshot.debian.org/archive/debian/20250520T000000Z
URIs: http://deb.debian.org/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";

    const INSTALLER: &str = "\
# deb cdrom:[Debian GNU/Linux 12]/ bookworm main

deb http://ftp.de.debian.org/debian/ bookworm main non-free-firmware # the nearest
deb-src http://ftp.de.debian.org/debian/ bookworm main
deb [ arch=amd64 signed-by=/usr/share/keyrings/x.gpg trusted=yes ] https://apt.example.org stable main
deb [broken http://nowhere bookworm main
";

    const ODD: &str = "\
types: deb
uris: http://mirror/debian
suites: bookworm
components: main
signed-by:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----


Enabled: no
Types: deb
URIs: http://disabled
Suites: bookworm-backports
Components: main

no stanza at all
";

    #[test]
    fn the_docker_images_sources_are_read() {
        let found = parse_deb822(DOCKER_IMAGE);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].uris, ["http://deb.debian.org/debian"]);
        assert_eq!(found[0].suites, ["bookworm", "bookworm-updates"]);
        assert!(found[0].serves("bookworm") && !found[0].serves("bookworm-backports"));
        assert_eq!(found[0].signed_by.as_deref(), Some("/usr/share/keyrings/debian-archive-keyring.gpg"));
    }

    #[test]
    fn the_installers_sources_are_read() {
        let found = parse_one_line(INSTALLER);
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(found[0].components, ["main", "non-free-firmware"]);
        assert!(!found[1].serves("bookworm"), "sources of packages are no packages");
        assert_eq!(found[2].signed_by.as_deref(), Some("/usr/share/keyrings/x.gpg"));
        assert!(found[2].trusted);
    }

    #[test]
    fn embedded_keys_disabled_stanzas_and_rubbish_are_coped_with() {
        let found = parse_deb822(ODD);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].signed_by.as_ref().unwrap().contains("\n .\n abc\n"));
    }

    #[test]
    fn the_stanza_added_names_the_same_mirror_and_key_and_reads_back() {
        for text in [DOCKER_IMAGE, ODD] {
            let wanted = parse_deb822(text)[0].for_suite("bookworm-backports");
            let written = wanted.to_deb822("Added by a test.");
            let [read] = &parse_deb822(&written)[..] else { panic!("not one stanza: {written}") };
            assert!(read.serves("bookworm-backports") && !read.serves("bookworm"));
            assert_eq!((&read.uris, &read.signed_by), (&wanted.uris, &wanted.signed_by));
        }
    }

    #[test]
    fn trust_is_carried_over() {
        let source = parse_one_line(INSTALLER)[2].for_suite("s");
        assert!(source.to_deb822("x").ends_with("Trusted: yes\n"));
    }
}
