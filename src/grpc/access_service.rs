//! `AccessService`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tonic::{Request, Response, Status};

use super::{
    access_check::{Asker, Checks},
    call::answer,
    convert::time,
};
use crate::{
    access::{Gate, Reason, Refusal, Verdict, explain::Explainer, verdict},
    domain::{Area, Permission, Principal},
    pb::v1::{self as pb, access_service_server},
};

/// How many actions one call may ask about.
const ACTIONS_MAX: usize = 100;

/// Who am I and what may I do.
#[derive(Clone, Debug)]
pub(super) struct AccessService {
    vocabulary: Arc<[pb::Permission]>,
    declared: Arc<BTreeSet<Arc<str>>>,
    explainer: Explainer,
    checks: Checks,
}

impl AccessService {
    /// `opens` are the RPCs with the permission of their rule, `declared` the
    /// foreign permissions of the configuration.
    pub(super) fn new(
        opens: impl IntoIterator<Item = (Permission, String)>,
        declared: BTreeSet<Arc<str>>,
        explainer: Explainer,
        gate: Gate,
    ) -> Self {
        let mut methods = BTreeMap::<Permission, Vec<String>>::new();
        for (permission, method) in opens {
            methods.entry(permission).or_default().push(method);
        }
        let vocabulary = Permission::ALL.iter().map(|permission| {
            let mut methods = methods.remove(permission).unwrap_or_default();
            methods.sort_unstable();
            pb::Permission {
                name: permission.name().to_owned(),
                description: permission.description().to_owned(),
                methods,
            }
        });
        let declared = Arc::new(declared);
        let checks = Checks::new(gate, Arc::clone(&declared));
        Self { vocabulary: vocabulary.collect(), declared, explainer, checks }
    }

    fn allowed(
        &self,
        principal: &Principal,
        place: usize,
        action: &pb::Action,
    ) -> Result<bool, Refusal> {
        let area = action.namespace.as_deref().map(Area::parse).transpose().map_err(|error| {
            let field = format!("actions[{place}].namespace");
            Refusal::invalid(Reason::FieldInvalid, &field, error)
        })?;
        let verdict = verdict(principal, &self.declared, &action.permission, area.as_ref());
        Ok(verdict == Verdict::Allowed)
    }
}

#[tonic::async_trait]
impl access_service_server::AccessService for AccessService {
    async fn who_am_i(
        &self,
        request: Request<pb::WhoAmIRequest>,
    ) -> Result<Response<pb::WhoAmIResponse>, Status> {
        answer(request, |caller, request| async move { Ok(caller.authenticated(&request)?.into()) })
            .await
    }

    async fn can_i(
        &self,
        request: Request<pb::CanIRequest>,
    ) -> Result<Response<pb::CanIResponse>, Status> {
        answer(request, |caller, request| async move {
            let principal = caller.authenticated(&request)?;
            if request.actions.is_empty() || request.actions.len() > ACTIONS_MAX {
                let what = format!("ask about 1 to {ACTIONS_MAX} actions");
                return Err(Refusal::invalid(Reason::FieldInvalid, "actions", what).into());
            }
            let places = request.actions.iter().map(|action| action.namespace.as_deref());
            let subject = match &request.as_subject {
                Some(text) => Some(self.explainer.subject(principal, text, places).await?),
                None => None,
            };
            let principal = subject.as_ref().map_or(principal, |known| &known.principal);
            let answers = request.actions.into_iter().enumerate().map(|(place, action)| {
                let allowed = self.allowed(principal, place, &action)?;
                let pb::Action { permission, namespace } = action;
                Ok(pb::CanIAnswer { permission, namespace, allowed })
            });
            Ok(pb::CanIResponse {
                answers: answers.collect::<Result<_, Refusal>>()?,
                last_seen_at: subject.and_then(|known| known.last_seen_at).map(time),
            })
        })
        .await
    }

    async fn explain_decision(
        &self,
        request: Request<pb::ExplainDecisionRequest>,
    ) -> Result<Response<pb::ExplainDecisionResponse>, Status> {
        answer(request, |caller, request| async move {
            let principal = caller.authenticated(&request)?;
            Ok(self.explainer.explain(principal, &request.request_id).await?.into())
        })
        .await
    }

    async fn who_can(
        &self,
        request: Request<pb::WhoCanRequest>,
    ) -> Result<Response<pb::WhoCanResponse>, Status> {
        answer(request, |caller, request| async move {
            let principal = caller.authenticated(&request)?;
            let pb::WhoCanRequest { permission, namespace } = &request;
            Ok(self.explainer.who_can(principal, permission, namespace)?.into())
        })
        .await
    }

    async fn list_permissions(
        &self,
        request: Request<pb::ListPermissionsRequest>,
    ) -> Result<Response<pb::ListPermissionsResponse>, Status> {
        answer(request, |caller, request| async move {
            caller.authenticated(&request)?;
            Ok(pb::ListPermissionsResponse { permissions: self.vocabulary.to_vec() })
        })
        .await
    }

    async fn introspect(
        &self,
        request: Request<pb::IntrospectRequest>,
    ) -> Result<Response<pb::IntrospectResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.global(&request)?;
            self.checks.introspect(Asker { caller: &caller, claim: &claim }, &request).await
        })
        .await
    }

    async fn check(
        &self,
        request: Request<pb::CheckRequest>,
    ) -> Result<Response<pb::CheckResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.global(&request)?;
            self.checks.check(Asker { caller: &caller, claim: &claim }, &request).await
        })
        .await
    }

    async fn check_batch(
        &self,
        request: Request<pb::CheckBatchRequest>,
    ) -> Result<Response<pb::CheckBatchResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.global(&request)?;
            self.checks.check_batch(Asker { caller: &caller, claim: &claim }, &request).await
        })
        .await
    }
}
