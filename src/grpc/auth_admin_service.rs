//! `AuthAdminService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{call::answer, convert};
use crate::{
    access::Gate,
    admin::{
        Admin, PageRequest, api_keys,
        elevation::{Decision, Elevating},
        exchange, signing_keys, tokens,
    },
    pb::v1::{self as pb, auth_admin_service_server},
};

/// Tokens and API keys.
#[derive(Clone, Debug)]
pub(super) struct AuthAdminService {
    admin: Arc<Admin>,
    gate: Gate,
    elevating: Arc<Elevating>,
}

impl AuthAdminService {
    pub(super) fn new(admin: Arc<Admin>, gate: Gate, elevating: Arc<Elevating>) -> Self {
        Self { admin, gate, elevating }
    }
}

#[tonic::async_trait]
impl auth_admin_service_server::AuthAdminService for AuthAdminService {
    async fn mint_token(
        &self,
        request: Request<pb::MintTokenRequest>,
    ) -> Result<Response<pb::MintTokenResponse>, Status> {
        answer(request, |caller, request| async move {
            let root = caller.root(&request)?;
            let asked = request.namespaces.clone();
            let minted = tokens::mint(&self.admin, &caller, &root, request.into()).await?;
            Ok(convert::minted(&minted, Some(asked)))
        })
        .await
    }

    async fn list_tokens(
        &self,
        request: Request<pb::ListTokensRequest>,
    ) -> Result<Response<pb::ListTokensResponse>, Status> {
        answer(request, |caller, request| async move {
            let root = caller.root(&request)?;
            let page = PageRequest { size: request.page_size, token: request.page_token };
            let listed = tokens::list(&self.admin, &root, &page)?;
            let tokens = listed.items.iter().map(Into::into).collect();
            Ok(pb::ListTokensResponse { tokens, next_page_token: listed.next_token })
        })
        .await
    }

    async fn get_token(
        &self,
        request: Request<pb::GetTokenRequest>,
    ) -> Result<Response<pb::GetTokenResponse>, Status> {
        answer(request, |caller, request| async move {
            let root = caller.root(&request)?;
            let token = tokens::get(&self.admin, &root, &request.prefix)?;
            Ok(pb::GetTokenResponse { token: Some((&token).into()) })
        })
        .await
    }

    async fn revoke_token(
        &self,
        request: Request<pb::RevokeTokenRequest>,
    ) -> Result<Response<pb::RevokeTokenResponse>, Status> {
        answer(request, |caller, request| async move {
            let root = caller.root(&request)?;
            let revoked =
                tokens::revoke(&self.admin, &caller, &root, &request.prefix, request.cascade)
                    .await?;
            let revoked = revoked.iter().map(ToString::to_string).collect();
            Ok(pb::RevokeTokenResponse { revoked })
        })
        .await
    }

    async fn rotate_token(
        &self,
        request: Request<pb::RotateTokenRequest>,
    ) -> Result<Response<pb::RotateTokenResponse>, Status> {
        answer(request, |caller, request| async move {
            let root = caller.root(&request)?;
            let minted = tokens::rotate(
                &self.admin,
                &caller,
                &root,
                &request.prefix,
                request.overlap_seconds,
            )
            .await?;
            Ok(pb::RotateTokenResponse { token: Some(convert::minted(&minted, None)) })
        })
        .await
    }

    async fn tighten_token(
        &self,
        request: Request<pb::TightenTokenRequest>,
    ) -> Result<Response<pb::TightenTokenResponse>, Status> {
        answer(request, |caller, request| async move {
            let root = caller.root(&request)?;
            let pb::TightenTokenRequest { prefix, overlap_seconds, since_seconds, dry_run } =
                request;
            let asked = tokens::Tighten { overlap_seconds, since_seconds, dry_run };
            let tightened = tokens::tighten(&self.admin, &caller, &root, &prefix, asked).await?;
            Ok(tightened.into())
        })
        .await
    }

    async fn revoke_subject(
        &self,
        request: Request<pb::RevokeSubjectRequest>,
    ) -> Result<Response<pb::RevokeSubjectResponse>, Status> {
        answer(request, |caller, request| async move {
            let root = caller.root(&request)?;
            let pb::RevokeSubjectRequest { issuer, subject, cascade } = request;
            let (until, revoked) =
                tokens::revoke_subject(&self.admin, &caller, &root, issuer, subject, cascade)
                    .await?;
            let revoked = revoked.iter().map(ToString::to_string).collect();
            Ok(pb::RevokeSubjectResponse { revoked_before: Some(convert::time(until)), revoked })
        })
        .await
    }

    async fn create_api_key(
        &self,
        request: Request<pb::CreateApiKeyRequest>,
    ) -> Result<Response<pb::CreateApiKeyResponse>, Status> {
        answer(request, |caller, request| async move {
            let (scope, claim) = caller.scoped(&request)?;
            let new = request.try_into()?;
            let made = api_keys::create(&self.admin, &caller, &claim, scope, new).await?;
            Ok((&made).into())
        })
        .await
    }

    async fn list_api_keys(
        &self,
        request: Request<pb::ListApiKeysRequest>,
    ) -> Result<Response<pb::ListApiKeysResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let namespace = convert::namespace_filter(request.namespace.as_deref())?;
            let page = PageRequest { size: request.page_size, token: request.page_token };
            let listed = api_keys::list(&self.admin, &claim, namespace.as_ref(), &page)?;
            let api_keys = listed.items.iter().map(Into::into).collect();
            Ok(pb::ListApiKeysResponse { api_keys, next_page_token: listed.next_token })
        })
        .await
    }

    async fn get_api_key(
        &self,
        request: Request<pb::GetApiKeyRequest>,
    ) -> Result<Response<pb::GetApiKeyResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let key = api_keys::get(&self.admin, &claim, &request.id)?;
            Ok(pb::GetApiKeyResponse { api_key: Some((&key).into()) })
        })
        .await
    }

    async fn revoke_api_key(
        &self,
        request: Request<pb::RevokeApiKeyRequest>,
    ) -> Result<Response<pb::RevokeApiKeyResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            let key = api_keys::revoke(&self.admin, &caller, &claim, &request.id, request.cascade)
                .await?;
            Ok(pb::RevokeApiKeyResponse { api_key: Some((&key).into()) })
        })
        .await
    }

    async fn delete_api_key(
        &self,
        request: Request<pb::DeleteApiKeyRequest>,
    ) -> Result<Response<pb::DeleteApiKeyResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.claim(&request)?;
            api_keys::delete(&self.admin, &caller, &claim, &request.id).await?;
            Ok(pb::DeleteApiKeyResponse {})
        })
        .await
    }

    async fn list_signing_keys(
        &self,
        request: Request<pb::ListSigningKeysRequest>,
    ) -> Result<Response<pb::ListSigningKeysResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.global(&request)?;
            let keys = signing_keys::list(&self.admin, &claim).into_iter().map(Into::into);
            Ok(pb::ListSigningKeysResponse { keys: keys.collect() })
        })
        .await
    }

    async fn create_signing_key(
        &self,
        request: Request<pb::CreateSigningKeyRequest>,
    ) -> Result<Response<pb::CreateSigningKeyResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.global(&request)?;
            let key = signing_keys::create(&self.admin, &claim, &request.purpose).await?;
            Ok(pb::CreateSigningKeyResponse { key: Some(key.into()) })
        })
        .await
    }

    async fn retire_signing_key(
        &self,
        request: Request<pb::RetireSigningKeyRequest>,
    ) -> Result<Response<pb::RetireSigningKeyResponse>, Status> {
        answer(request, |caller, request| async move {
            let claim = caller.global(&request)?;
            let key = signing_keys::retire(&self.admin, &claim, &request.kid).await?;
            Ok(pb::RetireSigningKeyResponse { key: Some(key.into()) })
        })
        .await
    }

    async fn exchange_token(
        &self,
        request: Request<pb::ExchangeTokenRequest>,
    ) -> Result<Response<pb::ExchangeTokenResponse>, Status> {
        answer(request, |caller, request| async move {
            caller.authenticated(&request)?;
            let own = request
                .subject_token
                .as_deref()
                .is_none_or(|token| self.gate.is_own(&caller, token));
            let given = exchange::exchange(&self.admin, &caller, own, request.into()).await?;
            Ok(given.into())
        })
        .await
    }

    async fn request_elevation(
        &self,
        request: Request<pb::RequestElevationRequest>,
    ) -> Result<Response<pb::RequestElevationResponse>, Status> {
        answer(request, |caller, request| async move {
            caller.authenticated(&request)?;
            let elevation = self.elevating.request(&caller, request.into()).await?;
            Ok(pb::RequestElevationResponse { elevation: Some((&elevation).into()) })
        })
        .await
    }

    async fn list_elevations(
        &self,
        request: Request<pb::ListElevationsRequest>,
    ) -> Result<Response<pb::ListElevationsResponse>, Status> {
        answer(request, |caller, request| async move {
            caller.authenticated(&request)?;
            let listed = self.elevating.list(&caller).await?;
            let elevations = listed.iter().map(Into::into).collect();
            Ok(pb::ListElevationsResponse { elevations })
        })
        .await
    }

    async fn approve_elevation(
        &self,
        request: Request<pb::ApproveElevationRequest>,
    ) -> Result<Response<pb::ApproveElevationResponse>, Status> {
        answer(request, |caller, request| async move {
            caller.authenticated(&request)?;
            let decided = self.elevating.decide(&caller, &request.id, Decision::Approve).await?;
            Ok(pb::ApproveElevationResponse { elevation: Some((&decided).into()) })
        })
        .await
    }

    async fn deny_elevation(
        &self,
        request: Request<pb::DenyElevationRequest>,
    ) -> Result<Response<pb::DenyElevationResponse>, Status> {
        answer(request, |caller, request| async move {
            caller.authenticated(&request)?;
            let decided = self.elevating.decide(&caller, &request.id, Decision::Deny).await?;
            Ok(pb::DenyElevationResponse { elevation: Some((&decided).into()) })
        })
        .await
    }

    async fn revoke_elevation(
        &self,
        request: Request<pb::RevokeElevationRequest>,
    ) -> Result<Response<pb::RevokeElevationResponse>, Status> {
        answer(request, |caller, request| async move {
            caller.authenticated(&request)?;
            let ended = self.elevating.revoke(&caller, &request.id).await?;
            Ok(pb::RevokeElevationResponse { elevation: Some((&ended).into()) })
        })
        .await
    }
}
