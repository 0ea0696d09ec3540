//! `keyframe snapshots`: the tree, drawn.
//!
//! A column is a line of descent: what stands below something in the same column follows it. Whatever branches off is drawn
//! first, behind `├─`, with everything that follows it; the line that leads to the present goes on last, so that it stays in its
//! column however many branches there are. Trees that have no common root are separated by an empty line.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use keyframe_engine::drill::record::Verdict;
use keyframe_engine::tree::{self, SnapshotSummary, Tree};
use keyframe_engine::{Context, Error};
use keyframe_types::text::span;
use keyframe_types::{SnapshotId, Timestamp, VmName};

use crate::output::{Output, table};

const HEADINGS: [&str; 11] =
    ["SNAPSHOT", "ID", "AGE", "CONSISTENCY", "OWN", "SHARED", "FREES", "DEPTH", "EXPIRES", "OWNER", "NOTE"];

/// `keyframe snapshots`
pub fn run(ctx: &Context<'_>, vm: &VmName, output: &Output) -> Result<u8, Error> {
    let tree = tree::tree(ctx, vm)?;
    let status = if tree.damaged.is_empty() { 0 } else { 3 };
    output.result("snapshots", &tree, drawn(&tree, Timestamp::now()));
    Ok(status)
}

/// Something that hangs in the tree.
#[derive(Debug, Clone, Copy)]
enum Item<'a> {
    Snapshot(&'a SnapshotSummary),
    Fork(&'a VmName),
    Present,
}

fn drawn(tree: &Tree, now: Timestamp) -> String {
    if tree.snapshots.is_empty() && tree.damaged.is_empty() {
        return format!("{} has no snapshots; `keyframe snapshot {}` takes one\n", tree.vm, tree.vm);
    }
    let children = children(tree);
    let mut rows = vec![HEADINGS.map(str::to_owned).to_vec()];
    for (number, root) in children.get(&None).into_iter().flatten().enumerate() {
        if number > 0 {
            rows.push(Vec::new());
        }
        draw(*root, &children, now, &mut rows);
    }
    let mut text = table(&rows);
    for damaged in &tree.damaged {
        let _ = writeln!(text, "damaged: {}: {}", damaged.id, damaged.reason);
    }
    for fork in &tree.stray_forks {
        let _ = writeln!(text, "{fork} was forked from a snapshot that is not there any more");
    }
    if let Some(warning) = &tree.warning {
        let _ = writeln!(text, "{warning}");
    }
    text
}

type Children<'a> = HashMap<Option<&'a SnapshotId>, Vec<Item<'a>>>;

/// What follows each snapshot: forks, then branches by age, then what leads to the present. A parent that is not there
/// (it is damaged) leaves its children without one.
fn children(tree: &Tree) -> Children<'_> {
    let by_id: HashMap<&SnapshotId, &SnapshotSummary> = tree.snapshots.iter().map(|one| (&one.id, one)).collect();
    let known = |id: Option<&SnapshotId>| id.and_then(|id| by_id.get_key_value(id)).map(|(id, _)| *id);
    let mut on_the_way = HashSet::new();
    let mut next = known(tree.head.as_ref());
    // A circle ends where it has been.
    while let Some(id) = next.filter(|id| on_the_way.insert(*id)) {
        next = by_id.get(id).and_then(|one| known(one.parent.as_ref()));
    }
    let mut children: Children<'_> = HashMap::new();
    for one in &tree.snapshots {
        children.entry(Some(&one.id)).or_default().extend(one.forks.iter().map(Item::Fork));
    }
    let (main, aside): (Vec<_>, Vec<_>) = tree.snapshots.iter().partition(|one| on_the_way.contains(&one.id));
    for one in aside.into_iter().chain(main) {
        children.entry(known(one.parent.as_ref())).or_default().push(Item::Snapshot(one));
    }
    children.entry(known(tree.head.as_ref())).or_default().push(Item::Present);
    children
}

/// Draws everything that hangs on `root`. A stack, not recursion: a tree of a thousand generations is an ordinary one.
fn draw<'a>(root: Item<'a>, children: &Children<'a>, now: Timestamp, rows: &mut Vec<Vec<String>>) {
    // What to draw, what stands before it, and what stands before all that follows it.
    let mut stack = vec![(root, String::new(), String::new())];
    while let Some((item, before, below)) = stack.pop() {
        rows.push(row(item, &before, now));
        let Item::Snapshot(snapshot) = item else { continue };
        let mut following = children.get(&Some(&snapshot.id)).into_iter().flatten().rev();
        if let Some(last) = following.next() {
            stack.push((*last, below.clone(), below.clone()));
        }
        for aside in following {
            stack.push((*aside, format!("{below}├─ "), format!("{below}│  ")));
        }
    }
}

fn row(item: Item<'_>, before: &str, now: Timestamp) -> Vec<String> {
    match item {
        Item::Present => vec![format!("{before}(the present)")],
        Item::Fork(vm) => vec![format!("{before}(fork {vm})")],
        Item::Snapshot(snapshot) => snapshot_row(snapshot, before, now),
    }
}

fn snapshot_row(snapshot: &SnapshotSummary, before: &str, now: Timestamp) -> Vec<String> {
    let failed = snapshot.last_test.as_ref().is_some_and(|test| test.verdict == Verdict::Failed);
    let marks = [(snapshot.is_head, " *"), (snapshot.pinned, " (pinned)"), (failed, " (test failed)")];
    let marks: String = marks.into_iter().filter(|(is, _)| *is).map(|(_, mark)| mark).collect();
    let expires = match snapshot.expires {
        None => "-".to_owned(),
        Some(at) if at <= now => "now".to_owned(),
        Some(at) => format!("in {}", span(now.until(at).as_secs())),
    };
    vec![
        format!("{before}{}{marks}", snapshot.name),
        snapshot.id.short().to_owned(),
        span(snapshot.created.until(now).as_secs()),
        snapshot.consistency.as_str().to_owned(),
        snapshot.bytes_own.to_string(),
        snapshot.bytes_shared.to_string(),
        snapshot.bytes_freed.to_string(),
        snapshot.depth.to_string(),
        expires,
        snapshot.owner.clone(),
        snapshot.note.clone().unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use keyframe_engine::state::manifest::Consistency;
    use keyframe_types::ByteLen;

    use super::*;

    fn snapshot(name: &str, parent: Option<&SnapshotSummary>) -> SnapshotSummary {
        SnapshotSummary {
            memory_elsewhere: ByteLen::ZERO,
            memory_readers: 0,
            id: SnapshotId::random(),
            name: name.to_owned(),
            parent: parent.map(|parent| parent.id.clone()),
            group: None,
            consistency: Consistency::Crash,
            memory: false,
            created: Timestamp::now(),
            owner: "anna".to_owned(),
            note: None,
            expires: None,
            pinned: false,
            bytes_own: ByteLen::ZERO,
            bytes_shared: ByteLen::ZERO,
            bytes_freed: ByteLen::ZERO,
            depth: 1,
            is_head: false,
            forks: Vec::new(),
            last_test: None,
        }
    }

    fn tree(snapshots: Vec<SnapshotSummary>, head: Option<SnapshotId>) -> Tree {
        let vm = VmName::new("db").unwrap();
        Tree { vm, head, snapshots, damaged: Vec::new(), stray_forks: Vec::new(), warning: None }
    }

    /// The first column, without what stands in the others.
    fn column(tree: &Tree) -> Vec<String> {
        let text = drawn(tree, Timestamp::now());
        let width = text.lines().next().unwrap().find("ID").unwrap();
        let cell = |line: &str| line.chars().take(width).collect::<String>().trim_end().to_owned();
        text.lines().skip(1).map(cell).collect()
    }

    #[test]
    fn branches_forks_and_the_present_hang_where_they_belong() {
        let one = snapshot("one", None);
        let mut two = snapshot("two", Some(&one));
        two.forks = vec![VmName::new("twin").unwrap()];
        let (left, right) = (snapshot("left", Some(&two)), snapshot("right", Some(&two)));
        let after = snapshot("after-left", Some(&left));
        let alone = snapshot("alone", None);
        let head = Some(right.id.clone());
        let all = tree(vec![one, two, left, right, after, alone], head);
        let expected =
            ["alone", "", "one", "two", "├─ (fork twin)", "├─ left", "│  after-left", "right", "(the present)"];
        assert_eq!(column(&all), expected);
    }

    #[test]
    fn a_thousand_generations_are_one_column() {
        let mut all: Vec<SnapshotSummary> = Vec::new();
        for number in 0..1000 {
            let fresh = snapshot(&format!("s{number}"), all.last());
            all.push(fresh);
        }
        let head = all.last().map(|last| last.id.clone());
        let lines = column(&tree(all, head));
        assert_eq!((lines.len(), lines[0].as_str(), lines[1000].as_str()), (1001, "s0", "(the present)"));
    }

    #[test]
    fn spans_and_marks_are_short() {
        let now = Timestamp::now();
        let mut one = snapshot("one", None);
        one.pinned = true;
        one.is_head = true;
        one.expires = Some(now.after("5d".parse().unwrap()));
        let row = snapshot_row(&one, "", now);
        assert_eq!((row[0].as_str(), row[8].as_str()), ("one * (pinned)", "in 5 d"));
        one.expires = Some(now);
        assert_eq!(snapshot_row(&one, "", now)[8], "now");
    }
}
