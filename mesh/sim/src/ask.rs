//! What can be asked of a node, in a line each; for [`Mesh::submit`](crate::Mesh::submit) and
//! [`Mesh::command`](crate::Mesh::command). Instances are named `service/instance` or `namespace/service/instance`,
//! documents `key` or `group/key`.
//!
//! All of these panic when a name is none; [`instance_key`] and [`config_key`] return an error instead.

pub use crate::mesh::told;
use starling_core::Command;
use starling_core::config::ConfigWrite;
use starling_core::id::{ConfigGroup, ConfigKey, InstanceKey, NameError, Namespace, ServiceKey};
use starling_core::registry::{Address, Instance, Override, Registration, Status};

/// Register an instance, listening somewhere.
#[track_caller]
pub fn register(path: &str) -> Command {
    register_as(path, Instance::at(Address { host: "app.test".into(), port: 8080 }))
}

/// Register an instance with everything that can be said of one.
#[track_caller]
pub fn register_as(path: &str, instance: Instance) -> Command {
    Command::Register(Registration { key: named(instance_key(path)), instance })
}

/// Renew the lease of an instance with a TTL check.
#[track_caller]
pub fn renew(path: &str) -> Command {
    Command::Renew(named(instance_key(path)), Ok(()))
}

/// Change the status an instance's owner gives it; refused at other nodes.
#[track_caller]
pub fn set_status(path: &str, status: Status) -> Command {
    Command::SetStatus(named(instance_key(path)), status)
}

/// Remove an instance.
#[track_caller]
pub fn deregister(path: &str) -> Command {
    Command::Deregister(named(instance_key(path)))
}

/// Override an instance's status.
#[track_caller]
pub fn override_status(path: &str, status: Status) -> Command {
    set_override(path, Override { status: Some(status), ..Override::default() })
}

/// Override what operators can override.
#[track_caller]
pub fn set_override(path: &str, value: Override) -> Command {
    Command::SetOverride(named(instance_key(path)), Some(value))
}

/// Clear an override.
#[track_caller]
pub fn clear_override(path: &str) -> Command {
    Command::SetOverride(named(instance_key(path)), None)
}

/// Write a document.
#[track_caller]
pub fn put_config(path: &str, body: &str) -> Command {
    write_config(path, Some(body))
}

/// Delete a document.
#[track_caller]
pub fn delete_config(path: &str) -> Command {
    write_config(path, None)
}

fn write_config(path: &str, body: Option<&str>) -> Command {
    Command::WriteConfig(ConfigWrite {
        key: named(config_key(path)),
        body: body.map(Into::into),
        format: "text".into(),
        author: "test".into(),
        comment: String::new(),
        expect: None,
    })
}

/// The key of `service/instance` or `namespace/service/instance`.
///
/// # Errors
/// A sentence that says what is wrong with the name.
pub fn instance_key(path: &str) -> Result<InstanceKey, String> {
    let wrong = |error: NameError| format!("{path:?}: {error}");
    let parts: Vec<&str> = path.split('/').collect();
    let (namespace, service, instance) = match parts[..] {
        [service, instance] => (Namespace::default(), service, instance),
        [namespace, service, instance] => (namespace.parse().map_err(wrong)?, service, instance),
        _ => return Err(format!("{path:?} names no instance: service/instance or namespace/service/instance")),
    };
    let service = ServiceKey { namespace, service: service.parse().map_err(wrong)? };
    Ok(InstanceKey { service, instance: instance.parse().map_err(wrong)? })
}

/// The key of `key` or `group/key`, in the default namespace.
///
/// # Errors
/// A sentence that says what is wrong with the name.
pub fn config_key(path: &str) -> Result<ConfigKey, String> {
    let wrong = |error: NameError| format!("{path:?}: {error}");
    let (group, key) = match path.split_once('/') {
        Some((group, key)) => (group.parse().map_err(wrong)?, key),
        None => (ConfigGroup::default(), path),
    };
    Ok(ConfigKey { namespace: Namespace::default(), group, key: key.parse().map_err(wrong)? })
}

#[track_caller]
pub(crate) fn named<K>(key: Result<K, String>) -> K {
    match key {
        Ok(key) => key,
        Err(why) => panic!("{why}"),
    }
}
