//! Policies against each other, and against the machines that there are.

use std::collections::{BTreeMap, BTreeSet};

use crate::load::{Mistake, Place, Severity};
use crate::owed::Policies;
use crate::policy::{Policy, PolicyName};
use crate::select::{Glob, Machine, Selector};

/// The most machines that one sentence names.
const NAMED: usize = 5;

fn mistake(place: &Place, severity: Severity, what: String, remedy: &str) -> Mistake {
    Mistake { place: place.clone(), severity, what, remedy: remedy.to_owned() }
}

fn listed(names: &[&str]) -> String {
    let more = names.len().saturating_sub(NAMED);
    let shown = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

impl Policies {
    /// Policies of which two must choose the same machine, whatever machines there are, and neither comes first.
    pub(crate) fn contradictions(&self) -> Vec<Mistake> {
        let all: Vec<&Policy> = self.policies.values().collect();
        let mut mistakes = Vec::new();
        for (at, one) in all.iter().enumerate() {
            for other in all[at + 1..].iter().filter(|other| other.priority == one.priority) {
                if let Some(shared) = shared(&one.machines, &other.machines) {
                    mistakes.push(mistake(
                        &other.place,
                        Severity::Error,
                        format!(
                            "policy.{} and policy.{}, at {}, both choose {shared} with priority {}",
                            other.name, one.name, one.place, one.priority
                        ),
                        "give one of them a higher priority: it counts for machines that both choose",
                    ));
                }
            }
        }
        mistakes
    }

    /// What only shows with the machines that there are: policies and groups that choose none, machines of which two policies or
    /// groups say something.
    #[must_use]
    pub fn against(&self, machines: &[Machine]) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        for policy in self.policies.values() {
            let chosen: Vec<&Machine> =
                machines.iter().filter(|machine| policy.machines.chooses(&machine.name, &machine.tags)).collect();
            // Two of one priority are told as such.
            let counts = |machine: &Machine| self.first_priority(machine) == Some(policy.priority);
            let what = match chosen.len() {
                0 => format!("policy.{} chooses none of the {} machine(s) here", policy.name, machines.len()),
                _ if chosen.iter().any(|machine| counts(machine)) => continue,
                _ => {
                    let names: Vec<&str> = chosen.iter().map(|machine| machine.name.as_str()).collect();
                    format!(
                        "policy.{} counts for no machine: others come before it for {}",
                        policy.name,
                        listed(&names)
                    )
                }
            };
            let remedy = "compare it with the names in `keyframe vm list`, and its tags with those in machine.toml";
            mistakes.push(mistake(&policy.place, Severity::Warning, what, remedy));
        }
        mistakes.extend(self.torn(machines));
        mistakes.extend(self.groups_against(machines));
        mistakes.sort();
        mistakes
    }

    fn first_priority(&self, machine: &Machine) -> Option<i64> {
        self.choosing(&machine.name, &machine.tags).first().map(|policy| policy.priority)
    }

    fn torn(&self, machines: &[Machine]) -> Vec<Mistake> {
        let mut pairs: BTreeMap<(&PolicyName, &PolicyName), Vec<&str>> = BTreeMap::new();
        for machine in machines {
            let choosing = self.choosing(&machine.name, &machine.tags);
            let Some((first, others)) = choosing.split_first() else { continue };
            for other in others.iter().filter(|other| other.priority == first.priority) {
                pairs.entry((&first.name, &other.name)).or_default().push(&machine.name);
            }
        }
        let pairs = pairs.into_iter().filter_map(|((first, other), names)| {
            let (first, other) = (self.policies.get(first)?, self.policies.get(other)?);
            // That one is told without any machine.
            if shared(&first.machines, &other.machines).is_some() {
                return None;
            }
            let what = format!(
                "policy.{} and policy.{}, at {}, both choose {} with priority {}",
                other.name,
                first.name,
                first.place,
                listed(&names),
                first.priority
            );
            let remedy = "give one of them a higher priority: it counts for machines that both choose";
            Some(mistake(&other.place, Severity::Error, what, remedy))
        });
        pairs.collect()
    }

    fn groups_against(&self, machines: &[Machine]) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        for group in self.groups.values() {
            let members: Vec<&Machine> =
                machines.iter().filter(|machine| group.machines.chooses(&machine.name, &machine.tags)).collect();
            if members.len() < 2 {
                let what =
                    format!("group.{} chooses {} of the {} machine(s) here", group.name, members.len(), machines.len());
                let remedy = "a group is of two machines or more, cut together: look at its names and tags";
                mistakes.push(mistake(&group.place, Severity::Warning, what, remedy));
            }
            if machines.iter().any(|machine| machine.name == group.name.as_str()) {
                let what = format!("group.{} has the name of a machine: backups of the group are refused", group.name);
                let remedy = "give the group another name: its points could not be told from the machine's";
                mistakes.push(mistake(&group.place, Severity::Error, what, remedy));
            }
            let policies: BTreeSet<&PolicyName> = members
                .iter()
                .filter_map(|machine| Some(&self.choosing(&machine.name, &machine.tags).first()?.name))
                .collect();
            if policies.len() > 1 {
                let names: Vec<&str> = policies.into_iter().map(PolicyName::as_str).collect();
                let what = format!("group.{} has machines of policies {}", group.name, listed(&names));
                let remedy = "only those of one policy are cut together: let one policy choose all of its machines";
                mistakes.push(mistake(&group.place, Severity::Error, what, remedy));
            }
        }
        for machine in machines {
            let mut groups = self.groups.values().filter(|group| group.machines.chooses(&machine.name, &machine.tags));
            if let (Some(first), Some(second)) = (groups.next(), groups.next()) {
                let what = format!("{} belongs to group.{} and group.{}", machine.name, first.name, second.name);
                let remedy = "a machine is cut with one group: take it out of the other with a name such as \"!NAME\"";
                mistakes.push(mistake(&second.place, Severity::Error, what, remedy));
            }
        }
        mistakes
    }
}

/// A pattern or a tag by which two selectors choose the same machines; nothing where one of them takes some out.
fn shared(one: &Selector, other: &Selector) -> Option<String> {
    if one.names.iter().chain(&other.names).any(Glob::excludes) {
        return None;
    }
    let name = one.names.iter().find(|glob| other.names.contains(glob)).map(|glob| format!("machines named {glob}"));
    name.or_else(|| one.tags.iter().find(|tag| other.tags.contains(tag)).map(|tag| format!("machines tagged {tag}")))
}
