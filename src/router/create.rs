//! CreateVolume among many hosts. No call of CSI looks up a name, so each host that may have the volume is first asked for
//! it "only if it exists": a retry finds the host that began. Only then is it made, on the first host with room.

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::future::join_all;
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status, metadata::MetadataValue};

use super::{Router, again, order::order, split, unavailable, view::Host};
use crate::{
    csi::{Member, requests, status::status},
    pool::record::Source,
    proto::{CreateVolumeRequest, CreateVolumeResponse, IMPORT, ONLY_IF_EXISTS},
};

/// How long a host may take to say whether it has a volume. One that takes longer counts as one that does not answer.
const LOOK: Duration = Duration::from_secs(5);

type Answer = Result<Response<CreateVolumeResponse>, Status>;

pub(super) async fn create(router: &Router, request: Request<CreateVolumeRequest>) -> Answer {
    // It names a device of this very host.
    if request.metadata().contains_key(IMPORT) {
        return router.inner.own.controller.create_volume(request).await;
    }
    let wanted = requests::create_volume(request.get_ref(), &router.inner.anywhere).map_err(status)?;
    // A copy is made where its source is, which refuses what the topology does not allow.
    if let Some(source) = wanted.source {
        let pool = match source {
            Source::Snapshot(id) => id.pool,
            Source::Volume(id) => id.pool,
        };
        return router.owner(Some(pool))?.controller.create_volume(request).await;
    }
    let view = router.view();
    let requirement = request.get_ref().accessibility_requirements.as_ref();
    let allowed = order(&view, requirement, &router.inner.placing, &wanted.name).map_err(status)?;
    match allowed.as_slice() {
        // Refused as any host would that is not meant.
        [] => router.inner.own.controller.create_volume(request).await,
        // Whether it exists or not, there is one place.
        [host] => for_new(host)?.controller.create_volume(request).await,
        _ => among(router, &allowed, request).await,
    }
}

/// The way to a host that a new volume may be put on.
fn for_new(host: &Host) -> Result<&Member, Status> {
    if host.given_up {
        let what = format!("host {} has a pool that was forgotten: nothing new is put there", host.node);
        return Err(status(unavailable(what)));
    }
    host.reach().map_err(status)
}

/// What a host says when it is asked for a volume that it may have.
enum Looked {
    Has(Box<Response<CreateVolumeResponse>>),
    HasNot,
    /// It has no such pool.
    CannotHave(Status),
    /// It is being made, or is of another kind.
    Refuses(Status),
    Silent(Status),
}

async fn look(host: &Host, request: CreateVolumeRequest, beside: &Request<()>) -> Looked {
    let member = match for_new(host) {
        Ok(member) => member,
        Err(silent) => return Looked::Silent(silent),
    };
    let mut request = again(beside, request);
    request.metadata_mut().insert(ONLY_IF_EXISTS, MetadataValue::from_static("true"));
    let Ok(answer) = timeout(LOOK, member.controller.create_volume(request)).await else {
        let what = format!("host {} has not said within {LOOK:?} whether it has the volume", host.node);
        return Looked::Silent(status(unavailable(what)));
    };
    match answer {
        Ok(volume) => Looked::Has(Box::new(volume)),
        Err(said) => match said.code() {
            Code::NotFound => Looked::HasNot,
            Code::ResourceExhausted => Looked::CannotHave(said),
            Code::Aborted
            | Code::AlreadyExists
            | Code::InvalidArgument
            | Code::OutOfRange
            | Code::FailedPrecondition => Looked::Refuses(said),
            // It cannot say, or will not tell us.
            _ => Looked::Silent(said),
        },
    }
}

async fn among(router: &Router, allowed: &[&Host], request: Request<CreateVolumeRequest>) -> Answer {
    let (beside, message) = split(request);
    let looks = allowed.iter().map(|host| look(host, message.clone(), &beside));
    let (mut having, mut free, mut refusal, mut silent, mut full) =
        (Vec::new(), Vec::new(), None, None, None);
    for (host, looked) in allowed.iter().zip(join_all(looks).await) {
        match looked {
            Looked::Has(volume) => having.push((host, volume)),
            Looked::HasNot => free.push(host),
            Looked::CannotHave(said) => full = Some(said),
            Looked::Refuses(said) => refusal = Some(said),
            Looked::Silent(said) => silent = Some(said),
        }
    }
    if having.len() > 1 {
        let hosts: Vec<_> = having.iter().map(|(host, _)| host.node.as_str()).collect();
        tracing::error!(
            name = message.name,
            ?hosts,
            "two hosts have this volume: see `lagan doctor --cluster`"
        );
        router.inner.doubled.fetch_add(1, Ordering::Relaxed);
    }
    if let Some((_, volume)) = having.into_iter().next() {
        return Ok(*volume);
    }
    if let Some(said) = refusal {
        return Err(said);
    }
    for host in free {
        match for_new(host)?.controller.create_volume(again(&beside, message.clone())).await {
            Err(said) if said.code() == Code::ResourceExhausted => full = Some(said),
            answer => return answer,
        }
    }
    // A final "no room" only where everybody has said so: the silent one may have it.
    let nobody = || unavailable("no host that the topology allows answers".to_owned());
    Err(silent.or(full).unwrap_or_else(|| status(nobody())))
}
