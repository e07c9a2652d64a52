//! Identifiers and namespaces in requests. An id that cannot be one is
//! answered as one that is not there (SE-10).

use crate::{
    access::{Reason, Refusal},
    domain::{Area, LeaseId, Namespace, StepId, TaskId},
    engine,
};

pub(in crate::grpc) fn task_id(text: &str) -> Result<TaskId, engine::Error> {
    TaskId::parse(text).ok_or_else(|| engine::Error::TaskNotFound(text.to_owned()))
}

/// A step under its task; without the one or the other the step is not there.
pub(in crate::grpc) fn step_ids(task: &str, step: &str) -> Result<(TaskId, StepId), engine::Error> {
    TaskId::parse(task)
        .zip(StepId::parse(step))
        .ok_or_else(|| engine::Error::StepNotFound(step.to_owned()))
}

pub(in crate::grpc) fn lease_id(text: &str) -> Result<LeaseId, engine::Error> {
    LeaseId::parse(text).ok_or(engine::Error::LeaseNotFound)
}

/// The namespace that a list is asked for.
pub(in crate::grpc) fn namespace_filter(text: Option<&str>) -> Result<Option<Namespace>, Refusal> {
    text.map(Namespace::parse).transpose().map_err(not_one)
}

/// The area that a list of workers is asked for.
pub(in crate::grpc) fn area_filter(text: Option<&str>) -> Result<Option<Area>, Refusal> {
    text.map(Area::parse).transpose().map_err(not_one)
}

fn not_one(error: crate::domain::namespace::Error) -> Refusal {
    Refusal::invalid(Reason::FieldInvalid, "namespace", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn se_10_what_is_no_id_reads_as_absent() {
        let id = "0193e1c4-7a6b-7000-8000-00004000002a";
        assert!(task_id(id).is_ok());
        for wrong in ["", "x", &id[1..], &id.replace('-', ""), "\u{0}"] {
            let error = task_id(wrong).unwrap_err();
            assert!(matches!(error, engine::Error::TaskNotFound(text) if text == wrong));
            for (task, step) in [(wrong, id), (id, wrong), (wrong, wrong)] {
                let error = step_ids(task, step).unwrap_err();
                assert!(matches!(error, engine::Error::StepNotFound(text) if text == step));
            }
            assert!(matches!(lease_id(wrong), Err(engine::Error::LeaseNotFound)));
        }
    }

    #[test]
    fn a_filter_is_absent_or_a_namespace() {
        assert_eq!(namespace_filter(None).unwrap(), None);
        assert!(namespace_filter(Some("shop.eu")).unwrap().is_some());
        for wrong in ["", "*", "shop.", " shop"] {
            let refusal = namespace_filter(Some(wrong)).unwrap_err();
            assert_eq!(refusal.reason, Reason::FieldInvalid);
            assert_eq!(refusal.fields[0].0, "namespace");
        }
        assert!(matches!(area_filter(Some("shop.")), Ok(Some(Area::Below(_)))));
    }
}
