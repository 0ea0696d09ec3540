//! s3s-fs, with reading of its own: s3s-fs reads all of an object for its MD5 each time somebody wants a piece of it, 4 KiB at a time.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput, CompleteMultipartUploadOutput,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput,
    DeleteObjectsOutput, ETag, GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input,
    ListObjectsV2Output, PutObjectInput, PutObjectOutput, StreamingBlob, Timestamp, UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;

/// What a bucket's objects lie in.
#[derive(Debug)]
pub struct Backend {
    root: PathBuf,
    files: FileSystem,
}

impl Backend {
    /// Over a directory that has one for each bucket.
    ///
    /// # Panics
    /// When it is none.
    pub fn new(root: PathBuf) -> Self {
        let files = FileSystem::new(&root).expect("a directory");
        Self { root, files }
    }
}

macro_rules! as_they_are {
    ($($method:ident: $input:ty => $output:ty,)+) => {
        #[async_trait::async_trait]
        impl S3 for Backend {
            $(async fn $method(&self, request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                self.files.$method(request).await
            })+

            async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
                self.read(&request.input).map(S3Response::new)
            }
        }
    };
}

as_they_are! {
    abort_multipart_upload: AbortMultipartUploadInput => AbortMultipartUploadOutput,
    complete_multipart_upload: CompleteMultipartUploadInput => CompleteMultipartUploadOutput,
    create_multipart_upload: CreateMultipartUploadInput => CreateMultipartUploadOutput,
    delete_object: DeleteObjectInput => DeleteObjectOutput,
    delete_objects: DeleteObjectsInput => DeleteObjectsOutput,
    head_object: HeadObjectInput => HeadObjectOutput,
    list_objects_v2: ListObjectsV2Input => ListObjectsV2Output,
    put_object: PutObjectInput => PutObjectOutput,
    upload_part: UploadPartInput => UploadPartOutput,
}

impl Backend {
    fn read(&self, input: &GetObjectInput) -> S3Result<GetObjectOutput> {
        let path = self.root.join(&input.bucket).join(&input.key);
        if path.components().any(|part| matches!(part, std::path::Component::ParentDir)) {
            return Err(s3_error!(InvalidArgument));
        }
        let mut file = std::fs::File::open(&path).map_err(|error| s3_error!(error, NoSuchKey))?;
        let metadata = file.metadata().map_err(|error| s3_error!(error, InternalError))?;
        let bytes = metadata.len();
        let range = match input.range {
            None => 0..bytes,
            Some(range) => range.check(bytes)?,
        };
        let len = usize::try_from(range.end - range.start).map_err(|error| s3_error!(error, InternalError))?;
        let mut body = vec![0; len];
        let read = file.seek(SeekFrom::Start(range.start)).and_then(|_| file.read_exact(&mut body));
        read.map_err(|error| s3_error!(error, InternalError))?;
        let modified = metadata.modified().map_err(|error| s3_error!(error, InternalError))?;
        let since_epoch = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let content_range =
            input.range.map(|_| format!("bytes {}-{}/{bytes}", range.start, range.end.saturating_sub(1)));
        Ok(GetObjectOutput {
            content_length: i64::try_from(len).ok(),
            content_range,
            last_modified: Some(Timestamp::from(modified)),
            e_tag: Some(ETag::Strong(format!("{bytes:x}-{}", since_epoch.as_nanos()))),
            body: Some(StreamingBlob::from(s3s::Body::from(hyper::body::Bytes::from(body)))),
            ..GetObjectOutput::default()
        })
    }
}
