//! Backups: what is in them, and what becomes of one that is not whole.

use axum::http::Request;

use super::world::World;
use crate::model::{Backup, BackupError};

/// A node with two documents, one of them not text, one deleted, and an override of an instance nobody registered.
async fn taken() -> (World, Vec<u8>) {
    let world = World::of(&["a", "b"]);
    let server = world.server("a");
    server.ask("PUT /v1/config/default/app/limits.json?author=ada", "{}").await.expect(200);
    let logo = Request::put("/v1/config/default/app/logo").header("host", "127.0.0.1:15000");
    server.send(logo.body(vec![0, 159, 146, 150].into()).unwrap()).await.expect(200);
    server.ask("PUT /v1/config/default/app/gone", "x").await.expect(200);
    server.ask("DELETE /v1/config/default/app/gone", "").await.expect(200);
    let path = "PUT /v1/services/orders/instances/1/override";
    server.ask(path, r#"{"weight": 0}"#).await.expect(404);
    server.ask(&format!("{path}?unregistered=true"), r#"{"weight": 0, "reason": "r"}"#).await.expect(200);
    let bytes = server.get("/v1/backup").await.expect(200).body.to_vec();
    (world, bytes)
}

#[tokio::test]
async fn a_backup_holds_all_documents_and_overrides_and_is_the_same_at_every_node() {
    let (world, bytes) = taken().await;
    let backup = Backup::read(&bytes).unwrap();
    let names: Vec<String> = backup.documents.iter().map(|document| document.key().to_string()).collect();
    assert_eq!(names, ["default/app/gone", "default/app/limits.json", "default/app/logo"]);
    assert!(backup.documents[0].served().is_none(), "it was deleted");
    let logo = &backup.documents[2];
    assert_eq!(logo.bytes_of(logo.served().unwrap()).unwrap(), [0, 159, 146, 150]);
    assert_eq!(backup.overrides[0].key().to_string(), "default/orders/1");
    assert_eq!(backup.overrides[0].word.as_ref().unwrap().weight, Some(0));
    let elsewhere = Backup::read(&world.server("b").get("/v1/backup").await.expect(200).body).unwrap();
    assert_eq!((elsewhere.documents.len(), &elsewhere.overrides), (3, &backup.overrides));
}

#[tokio::test]
async fn a_part_can_be_asked_for() {
    let (world, _) = taken().await;
    let server = world.server("a");
    let config = Backup::read(&server.get("/v1/backup?only=config").await.expect(200).body).unwrap();
    assert_eq!((config.documents.len(), config.overrides.len()), (3, 0));
    let overrides = Backup::read(&server.get("/v1/backup?only=overrides").await.expect(200).body).unwrap();
    assert_eq!((overrides.documents.len(), overrides.overrides.len()), (0, 1));
    server.get("/v1/backup?only=all").await.expect(400);
}

#[tokio::test]
async fn a_backup_cut_anywhere_or_changed_anywhere_is_refused() {
    let (_, bytes) = taken().await;
    for length in 0..bytes.len() {
        let error = Backup::read(&bytes[..length]).err();
        assert!(error.is_some() || length == bytes.len() - 1, "cut at {length}"); // the last line's end may be missing
    }
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(Backup::read(&changed).is_err(), "changed at {at}");
    }
    let mut longer = bytes.clone();
    longer.extend(b"{}\n");
    assert!(matches!(Backup::read(&longer), Err(BackupError::Damaged(_))));
    let newer = String::from_utf8(bytes).unwrap().replacen("\"format\":1", "\"format\":2", 1);
    assert_eq!(Backup::read(newer.as_bytes()), Err(BackupError::Format(2)));
    assert_eq!(Backup::read(b"hello"), Err(BackupError::NotABackup));
}

#[tokio::test]
async fn a_large_backup_comes_in_pieces_and_is_whole() {
    let world = World::of(&["a"]);
    let server = world.server("a");
    let body = "x".repeat(50_000);
    for number in 0..10 {
        server.ask(&format!("PUT /v1/config/default/app/k{number}"), &body).await.expect(200);
    }
    let backup = Backup::read(&server.get("/v1/backup").await.expect(200).body).unwrap();
    assert_eq!(backup.documents.len(), 10);
    assert!(backup.documents.iter().all(|document| document.served().unwrap().text.as_deref() == Some(&body)));
}

/// A backup of an earlier release; never changed. Another format has another number and a file of its own.
const BACKUP_V1: &[u8] = include_bytes!("../../tests/backup/v1.jsonl");

#[test]
fn a_backup_of_an_earlier_release_is_read_as_what_it_was() {
    let backup = Backup::read(BACKUP_V1).unwrap();
    let served: Vec<_> =
        backup.documents.iter().map(|document| (document.key().to_string(), document.served())).collect();
    let bytes = |at: usize| backup.documents[at].bytes_of(served[at].1.unwrap()).unwrap();
    let names: Vec<&str> = served.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["default/app/gone", "default/app/limits.json", "default/app/logo"]);
    assert!(served[0].1.is_none());
    assert_eq!((bytes(1), bytes(2)), (b"{}".to_vec(), vec![0, 159, 146, 150]));
    assert_eq!(served[1].1.unwrap().author, "ada");
    let word = backup.overrides[0].word.as_ref().unwrap();
    assert_eq!((backup.overrides[0].key().to_string().as_str(), word.weight), ("default/orders/1", Some(0)));
    assert_eq!(word.reason, "r");
}
