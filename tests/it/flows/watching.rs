//! Watching a task: a snapshot, then every event once.

use bailiwick::pb::v1::watch_task_response::Event;
use tokio::time::timeout;

use super::*;

async fn watch(
    api: &Api,
    task: &str,
    after_seq: Option<i64>,
) -> tonic::Streaming<pb::WatchTaskResponse> {
    let request = pb::WatchTaskRequest { task_uuid: task.into(), after_seq };
    api.client.tasks().watch_task(request).await.unwrap().into_inner()
}

async fn rest_of(
    mut stream: tonic::Streaming<pb::WatchTaskResponse>,
) -> Vec<pb::WatchTaskResponse> {
    let mut events = Vec::new();
    while let Some(event) = timeout(PATIENCE, stream.message()).await.unwrap().unwrap() {
        events.push(event);
    }
    events
}

#[tokio::test]
async fn a_watch_begins_with_a_snapshot_and_ends_with_the_task() {
    let (_server, api) = house(&[DIAMOND]).await;
    let id = api.create("diamond").await.task_uuid;
    let mut stream = watch(&api, &id, None).await;
    let first = timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap();
    let Some(Event::Snapshot(snapshot)) = first.event else { panic!("{first:?}") };
    assert_eq!(snapshot.steps.len(), 4);
    for name in ["top", "left", "right", "bottom"] {
        let lease = api.lease(name).await;
        api.complete(&lease, "{\"secret\": 1}").await;
    }
    let events = rest_of(stream).await;
    let Some(Event::Task(last)) = &events.last().unwrap().event else { panic!("{events:?}") };
    assert_eq!(last.state(), TaskState::Complete);
    let seqs: Vec<_> = events.iter().map(|event| event.seq).collect();
    let next: Vec<_> = (first.seq + 1..).take(seqs.len()).collect();
    assert_eq!(seqs, next, "without gaps behind the snapshot");
    let completed: Vec<_> = events
        .iter()
        .filter_map(|event| match &event.event {
            Some(Event::Step(step)) if step.state() == StepState::Complete => {
                Some(step.name.as_str())
            }
            _ => None,
        })
        .collect();
    assert_eq!(completed, ["top", "left", "right", "bottom"]);

    // From the beginning, and from anywhere: the same events, none twice.
    let all = rest_of(watch(&api, &id, Some(0)).await).await;
    let seqs: Vec<_> = all.iter().map(|event| event.seq).collect();
    let whole: Vec<_> = (1..).take(all.len()).collect();
    assert_eq!(seqs, whole);
    assert!(all.ends_with(&events));
    for after in [1, first.seq, first.seq + 2] {
        let resumed = rest_of(watch(&api, &id, Some(after)).await).await;
        let skipped = usize::try_from(after).unwrap();
        assert_eq!(resumed, all[skipped..], "behind {after}");
    }
}

#[tokio::test]
async fn rest_streams_the_same_events_as_lines() {
    let (server, api) = house(&[&api::one("work")]).await;
    let id = api.create("work").await.task_uuid;
    let call = server.rest(Method::GET, &format!("/v1/tasks/{id}/watch?after_seq=0"));
    let answer = call.header("accept", "application/x-ndjson").send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
    let lease = api.lease("work").await;
    api.complete(&lease, "1").await;
    let text = timeout(PATIENCE, answer.text()).await.unwrap().unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seqs: Vec<_> = lines.iter().map(|line| line["seq"].as_i64().unwrap()).collect();
    let whole: Vec<_> = (1..).take(lines.len()).collect();
    assert_eq!(seqs, whole);
    assert_eq!(lines.last().unwrap()["task"]["state"], "complete");
    let absent = format!("/v1/tasks/{}/watch", id.replace(&id[..8], "01900000"));
    assert_eq!(rest(&server, Method::GET, &absent, None).await.0, 404);
}
