//! Every typed command against the schema that a real QEMU tells of itself: names, types, required and
//! optional members, and whether it may run out of band.

mod common;

use std::collections::HashMap;

use common::Qemu;
use keyframe_qmp::commands::block::{
    BlockCommit, BlockStream, BlockdevAdd, BlockdevDel, NodeBacking, QueryBlock, QueryBlockstats, QueryNamedBlockNodes,
    Snapshot, StatsOf, Transaction,
};
use keyframe_qmp::commands::device::{
    AnnounceSelf, DeviceAdd, DeviceDel, Link, NetdevAdd, NetdevDel, ObjectAdd, ObjectDel, QomGet, QomList, SetLink,
};
use keyframe_qmp::commands::job::{
    BlockJobCancel, BlockJobComplete, JobCancel, JobDismiss, JobFinalize, QueryBlockJobs, QueryJobs,
};
use keyframe_qmp::commands::machine::{
    AddFd, CloseFd, Cont, GetFd, HumanMonitorCommand, QueryCpusFast, QueryMemdev, QueryStatus, QueryVersion,
    QueryVmGenerationId, Quit, Stop, SystemPowerdown, SystemReset,
};
use keyframe_qmp::commands::migration::{
    Capability, Migrate, MigrateCancel, MigrateIncoming, MigratePause, MigrateRecover, MigrateSetCapabilities,
    MigrateSetParameters, MigrationAddress, MigrationUri, QueryMigrate, QueryMigrateCapabilities,
};
use keyframe_qmp::ids::{DeviceId, FdName, JobId, NodeName, ObjectId};
use keyframe_qmp::{Command, Lane};
use serde_json::Value;

/// What QEMU tells. Types have numbers for names.
struct Schema {
    entities: HashMap<String, Value>,
}

impl Schema {
    fn of(qemu: &Qemu) -> Self {
        let all: Vec<Value> = qemu.connect().execute_as("query-qmp-schema", &()).unwrap();
        let name = |entity: &Value| entity["name"].as_str().unwrap().to_owned();
        Self { entities: all.into_iter().map(|entity| (name(&entity), entity)).collect() }
    }

    fn entity(&self, name: &Value) -> &Value {
        &self.entities[name.as_str().unwrap_or_else(|| panic!("{name} is no name"))]
    }

    fn check<C: Command>(&self, command: &C) -> Value {
        let told = self.entities.get(C::NAME).unwrap_or_else(|| panic!("QEMU has no {}", C::NAME));
        assert_eq!(told["meta-type"], "command", "{}", C::NAME);
        if C::LANE == Lane::OutOfBand {
            assert_eq!(told["allow-oob"], true, "{}", C::NAME);
        }
        let arguments = serde_json::to_value(command).unwrap();
        self.matches(&arguments, &told["arg-type"]).unwrap_or_else(|why| panic!("{} {arguments}: {why}", C::NAME));
        arguments
    }

    fn matches(&self, value: &Value, kind: &Value) -> Result<(), String> {
        let told = self.entity(kind);
        let sound = match told["meta-type"].as_str().unwrap() {
            "builtin" => is_builtin(value, told["json-type"].as_str().unwrap()),
            "enum" => told["members"].as_array().unwrap().iter().any(|member| member["name"] == *value),
            "array" => {
                let all = value.as_array().ok_or_else(|| format!("{value} is no list"))?;
                return all.iter().try_for_each(|element| self.matches(element, &told["element-type"]));
            }
            "alternate" => {
                let kinds = told["members"].as_array().unwrap();
                kinds.iter().any(|member| self.matches(value, &member["type"]).is_ok())
            }
            "object" => return self.matches_object(value, told),
            other => return Err(format!("{other} is not understood")),
        };
        if sound { Ok(()) } else { Err(format!("{value} is no {kind} ({told})")) }
    }

    fn matches_object(&self, value: &Value, told: &Value) -> Result<(), String> {
        let members = self.members(value, told)?;
        let object = value.as_object().ok_or_else(|| format!("{value} is no object"))?;
        for (name, inner) in object {
            let member = members.iter().find(|member| member["name"] == *name);
            let member = member.ok_or_else(|| format!("there is no member {name}"))?;
            self.matches(inner, &member["type"]).map_err(|why| format!("{name}: {why}"))?;
        }
        let missing = members
            .iter()
            .find(|member| member.get("default").is_none() && !object.contains_key(member["name"].as_str().unwrap()));
        missing.map_or(Ok(()), |member| Err(format!("{} is missing", member["name"])))
    }

    /// An object's members, those of its variant included.
    fn members(&self, value: &Value, told: &Value) -> Result<Vec<Value>, String> {
        let mut members = told["members"].as_array().unwrap().clone();
        if let Some(tag) = told.get("tag").and_then(Value::as_str) {
            let variants = told["variants"].as_array().unwrap();
            let chosen = variants.iter().find(|variant| variant["case"] == value[tag]);
            let chosen = chosen.ok_or_else(|| format!("{tag} has no case {}", value[tag]))?;
            members.extend(self.members(value, self.entity(&chosen["type"]))?);
        }
        Ok(members)
    }
}

fn is_builtin(value: &Value, json_type: &str) -> bool {
    match json_type {
        "string" => value.is_string(),
        "int" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "value" => true,
        other => panic!("{other} is not understood"),
    }
}

fn node(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

#[test]
fn the_machines_commands() {
    let schema = Schema::of(&Qemu::start(&[]));
    schema.check(&QueryStatus {});
    schema.check(&Stop {});
    schema.check(&Cont {});
    schema.check(&Quit {});
    schema.check(&SystemPowerdown {});
    schema.check(&SystemReset {});
    schema.check(&QueryVersion {});
    schema.check(&QueryVmGenerationId {});
    schema.check(&QueryCpusFast {});
    schema.check(&QueryMemdev {});
    let fdname = FdName::new("f").unwrap();
    schema.check(&GetFd { fdname: fdname.clone() });
    schema.check(&CloseFd { fdname });
    schema.check(&AddFd { fdset: None, opaque: Some("x".into()) });
    schema.check(&HumanMonitorCommand { command_line: "info version".into() });
}

#[test]
fn the_commands_of_migration() {
    let schema = Schema::of(&Qemu::start(&[]));
    let capabilities = [
        Capability::Events,
        Capability::BackgroundSnapshot,
        Capability::MappedRam,
        Capability::PostcopyRam,
        Capability::PostcopyPreempt,
        Capability::PostcopyBlocktime,
        Capability::Multifd,
        Capability::ReturnPath,
        Capability::ValidateUuid,
        Capability::LateBlockActivate,
        Capability::IgnoreShared,
        Capability::PauseBeforeSwitchover,
        Capability::DirtyBitmaps,
    ];
    schema.check(&MigrateSetCapabilities::on(capabilities.clone()));
    schema.check(&MigrateSetCapabilities::off(capabilities));
    schema.check(&QueryMigrateCapabilities {});
    schema.check(&MigrateSetParameters::default());
    schema.check(&MigrateSetParameters {
        max_bandwidth_bytes_per_s: Some(1),
        max_postcopy_bandwidth_bytes_per_s: Some(1),
        downtime_limit_ms: Some(1),
        multifd_channels: Some(1),
        direct_io: Some(true),
        announce_rounds: Some(1),
    });
    let uri = MigrationUri::new("unix:/x").unwrap();
    let addresses = [
        MigrationAddress::Unix { path: "/x".into() },
        MigrationAddress::Fd { name: FdName::new("f").unwrap() },
        MigrationAddress::File { filename: "/x".into(), offset: 4096 },
    ];
    for address in addresses {
        schema.check(&Migrate::to(address.clone()));
        schema.check(&Migrate::to(address.clone()).resuming());
        schema.check(&MigrateIncoming::from(address));
    }
    schema.check(&Migrate::to_uri(uri.clone()));
    schema.check(&MigrateIncoming::from_uri(uri.clone()));
    schema.check(&MigrateRecover { uri });
    schema.check(&MigratePause {});
    schema.check(&MigrateCancel {});
    schema.check(&QueryMigrate {});
}

#[test]
fn the_commands_of_disks_and_jobs() {
    let schema = Schema::of(&Qemu::start(&[]));
    for backing in [NodeBacking::FromHeader, NodeBacking::Detached, NodeBacking::Node(node("b"))] {
        schema.check(&BlockdevAdd::qcow2(&node("d0"), "/x", &backing).with("discard", "unmap"));
    }
    schema.check(&BlockdevDel { node_name: node("d0") });
    let snapshot = Snapshot { node: node("a"), overlay: node("b") };
    schema.check(&Transaction::snapshots([snapshot.clone(), snapshot]));
    schema.check(&QueryBlockstats::of(StatsOf::Devices));
    schema.check(&QueryBlockstats::of(StatsOf::Nodes));
    schema.check(&QueryBlock {});
    schema.check(&QueryNamedBlockNodes::flat());
    let job = JobId::new("j").unwrap();
    schema.check(&BlockStream {
        job_id: job.clone(),
        device: "d".to_owned(),
        base_node: Some(node("b")),
        backing_file: Some("b.qcow2".to_owned()),
        speed_bytes_per_s: Some(1),
        auto_dismiss: false,
        auto_finalize: false,
    });
    schema.check(&JobFinalize { id: job.clone() });
    schema.check(&JobCancel { id: job.clone() });
    schema.check(&BlockCommit {
        job_id: job.clone(),
        device: "d0".into(),
        top_node: Some(node("t")),
        base_node: Some(node("b")),
        backing_file: Some("/x".into()),
        speed_bytes_per_s: Some(1),
        auto_dismiss: false,
        auto_finalize: false,
    });
    schema.check(&BlockJobComplete { device: job.clone() });
    schema.check(&BlockJobCancel { device: job.clone(), force: true });
    schema.check(&JobDismiss { id: job });
    schema.check(&QueryJobs {});
    schema.check(&QueryBlockJobs {});
}

#[test]
fn the_commands_of_devices() {
    let schema = Schema::of(&Qemu::start(&[]));
    let device = DeviceId::new("d").unwrap();
    let object = ObjectId::new("o").unwrap();
    schema.check(&SetLink::new(device.clone(), Link::Down));
    schema.check(&AnnounceSelf::default());
    schema.check(&DeviceDel { id: device.clone() });
    schema.check(&NetdevAdd::new("user", &object).with("restrict", true));
    schema.check(&NetdevDel { id: object.clone() });
    schema.check(&ObjectAdd::new("memory-backend-ram", &object).with("size", 4096));
    schema.check(&ObjectDel { id: object });
    schema.check(&QomGet { path: "/machine".into(), property: "type".into() });
    schema.check(&QomList { path: "/".into() });
    // device_add takes any property: the schema tells only those that all devices have.
    let told = serde_json::to_value(DeviceAdd::new("virtio-net-pci", &device).with("mac", "52:54:00:00:00:01"));
    assert_eq!(told.unwrap()["driver"], "virtio-net-pci");
}

#[test]
fn a_misspelt_command_would_be_noticed() {
    #[derive(serde::Serialize)]
    struct Wrong {
        fd_name: &'static str,
    }
    impl Command for Wrong {
        const NAME: &'static str = "getfd";
        type Reply = Value;
    }
    let schema = Schema::of(&Qemu::start(&[]));
    let arg = schema.entity(&schema.entities["getfd"]["arg-type"]).clone();
    let value = serde_json::to_value(Wrong { fd_name: "x" }).unwrap();
    assert!(schema.matches_object(&value, &arg).is_err());
    assert!(schema.matches_object(&serde_json::json!({}), &arg).is_err());
    assert!(schema.matches_object(&serde_json::json!({"fdname": 5}), &arg).is_err());
    assert!(schema.matches_object(&serde_json::json!({"fdname": "x"}), &arg).is_ok());
}
