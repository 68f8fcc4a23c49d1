#pragma once
// c10d's header of NCCL includes those of CUDA's mathematical libraries, and uses no more of them than these names: it is
// compiled on machines without the toolkit. Where the toolkit is, its own headers come first; so for all files of this folder.
typedef struct cublasContext* cublasHandle_t;
typedef enum { CUBLAS_STATUS_SUCCESS = 0 } cublasStatus_t;
