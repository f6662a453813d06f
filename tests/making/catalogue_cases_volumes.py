"""Folders in the published layouts of the 3D datasets: what must be found, by hand."""

from __future__ import annotations

import json

from catalogue_trees import Case, dicom, medmnist, series

_TCIA = "manifest-1700000000000"
_MICRO = "Micro_Ultrasound_Prostate_Segmentation_Dataset"

CASES: dict[str, Case] = {
    "ct-colonography": Case(
        "",
        {
            f"{_TCIA}/CT COLONOGRAPHY/1.3.6.1.1/01-01-2000-NA-9/3.000-prone": {"group": 1},
            f"{_TCIA}/CT COLONOGRAPHY/1.3.6.1.1/01-01-2000-NA-9/4.000-supine": {"group": 1},
            f"{_TCIA}/CT COLONOGRAPHY/1.3.6.1.2/01-01-2000-NA-8/2.000-x": {"group": 2},
        },
        {
            **series(f"{_TCIA}/CT COLONOGRAPHY/1.3.6.1.1/01-01-2000-NA-9/3.000-prone", 10, "CT", "1.1"),
            **series(f"{_TCIA}/CT COLONOGRAPHY/1.3.6.1.1/01-01-2000-NA-9/4.000-supine", 10, "CT", "1.2"),
            **series(f"{_TCIA}/CT COLONOGRAPHY/1.3.6.1.1/01-01-2000-NA-9/1.000-scout", 2, "CT", "1.3"),
            **series(f"{_TCIA}/CT COLONOGRAPHY/1.3.6.1.2/01-01-2000-NA-8/2.000-x", 10, "CT", "1.4"),
            **series(
                f"{_TCIA}/CT COLONOGRAPHY/1.3.6.1.2/01-01-2000-NA-8/1.000-topo", 12, "CT", "1.5", kind="LOCALIZER"
            ),
        },
    ),
    "msd": Case(
        """
        Task04_Hippocampus/imagesTr/hippocampus_001.nii.gz
        Task04_Hippocampus/labelsTr/hippocampus_001.nii.gz
        Task04_Hippocampus/imagesTs/hippocampus_002.nii.gz
        Task09_Spleen/Task09_Spleen/imagesTr/spleen_2.nii.gz
        Task09_Spleen/Task09_Spleen/labelsTr/spleen_2.nii.gz
        """,
        {
            "Task04_Hippocampus/imagesTr/hippocampus_001.nii.gz": {
                "split": "train",
                "modality": "MRI",
                "mask": "Task04_Hippocampus/labelsTr/hippocampus_001.nii.gz",
            },
            "Task04_Hippocampus/imagesTs/hippocampus_002.nii.gz": {"split": "test", "modality": "MRI"},
            "Task09_Spleen/Task09_Spleen/imagesTr/spleen_2.nii.gz": {
                "split": "train",
                "modality": "CT",
                "mask": "Task09_Spleen/Task09_Spleen/labelsTr/spleen_2.nii.gz",
            },
        },
        {
            "Task04_Hippocampus/dataset.json": json.dumps(
                {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}
            ),
            "Task09_Spleen/Task09_Spleen/dataset.json": json.dumps(
                {"channel_names": {"0": "CT"}, "labels": {"background": 0, "spleen": 1}}
            ),
        },
    ),
    "cq500": Case(
        "",
        {
            "CQ500CT0 CQ500CT0/Unknown Study/CT Thin Plain": {"group": 0, "labels": ["ICH", "SDH"]},
            "CQ500CT12 CQ500CT12/Unknown Study/CT 5mm": {"group": 12, "labels": []},
        },
        {
            **series("CQ500CT0 CQ500CT0/Unknown Study/CT Thin Plain", 10, "CT", "2.1", "CT{:06d}.dcm"),
            **series("CQ500CT12 CQ500CT12/Unknown Study/CT 5mm", 11, "CT", "2.2", "CT{:06d}.dcm"),
            "reads.csv": "name,Category,R1:ICH,R1:IPH,R1:IVH,R1:SDH,R1:EDH,R1:SAH,R1:Fracture,"
            "R2:ICH,R2:IPH,R2:IVH,R2:SDH,R2:EDH,R2:SAH,R2:Fracture,R3:ICH,R3:IPH,R3:IVH,R3:SDH,"
            "R3:EDH,R3:SAH,R3:Fracture\n"
            # ICH three of three, IPH one of three, SDH two of three
            "CQ500-CT-0,B1,1,1,0,1,0,0,0,1,0,0,0,0,0,0,1,0,0,1,0,0,0\n"
            "CQ500-CT-12,B2,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0\n",
        },
    ),
    "hcc-tace-seg": Case(
        "",
        {
            "HCC-TACE-Seg/HCC_001/11-30-1999-NA-CT-1/2.000000-art": {
                "group": 1,
                "mask": "HCC-TACE-Seg/HCC_001/11-30-1999-NA-CT-1/300.000000-Segmentation-99942/1-1.dcm",
            },
            "HCC-TACE-Seg/HCC_001/11-30-1999-NA-CT-1/3.000000-ven": {"group": 1},
        },
        {
            **series("HCC-TACE-Seg/HCC_001/11-30-1999-NA-CT-1/2.000000-art", 6, "CT", "3.1", "1-{:02d}.dcm"),
            **series("HCC-TACE-Seg/HCC_001/11-30-1999-NA-CT-1/3.000000-ven", 6, "CT", "3.2", "1-{:02d}.dcm"),
            "HCC-TACE-Seg/HCC_001/11-30-1999-NA-CT-1/300.000000-Segmentation-99942/1-1.dcm": dicom(
                "SEG", "3.3", refers="3.1"
            ),
        },
    ),
    "ucsf-pdgm": Case(
        """
        UCSF-PDGM-v3/UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_T1.nii.gz
        UCSF-PDGM-v3/UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_FLAIR_bias.nii.gz
        UCSF-PDGM-v3/UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_DTI_eddy_L2.nii.gz
        UCSF-PDGM-v3/UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_DTI_eddy_noreg.nii.gz
        UCSF-PDGM-v3/UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_tumor_segmentation.nii.gz
        UCSF-PDGM-v3/UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_brain_segmentation.nii.gz
        UCSF-PDGM-v3/UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_brain_parenchyma_segmentation.nii.gz
        UCSF-PDGM-v3/UCSF-PDGM-0004_FU003d_nifti/UCSF-PDGM-0004_FU003d_T1.nii.gz
        UCSF-PDGM-v3/UCSF-PDGM-0004_FU003d_nifti/UCSF-PDGM-0004_FU003d_tumor_segmentation.nii.gz
        """,
        {
            **{
                f"UCSF-PDGM-v3/UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_{sequence}.nii.gz": {
                    "group": 4,
                    "mask": "UCSF-PDGM-v3/UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_tumor_segmentation.nii.gz",
                    "mask_brain": "UCSF-PDGM-v3/UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_brain_segmentation.nii.gz",
                }
                for sequence in ("T1", "FLAIR_bias", "DTI_eddy_L2")
            },
            "UCSF-PDGM-v3/UCSF-PDGM-0004_FU003d_nifti/UCSF-PDGM-0004_FU003d_T1.nii.gz": {
                "group": 4,
                "mask": "UCSF-PDGM-v3/UCSF-PDGM-0004_FU003d_nifti/UCSF-PDGM-0004_FU003d_tumor_segmentation.nii.gz",
            },
        },
    ),
    "brats2021": Case(
        """
        RSNA_ASNR_MICCAI_BraTS2021_TrainingData/BraTS2021_00000/BraTS2021_00000_flair.nii.gz
        RSNA_ASNR_MICCAI_BraTS2021_TrainingData/BraTS2021_00000/BraTS2021_00000_t1ce.nii.gz
        RSNA_ASNR_MICCAI_BraTS2021_TrainingData/BraTS2021_00000/BraTS2021_00000_seg.nii.gz
        RSNA_ASNR_MICCAI_BraTS2021_ValidationData/BraTS2021_00001/BraTS2021_00001_t2.nii.gz
        """,
        {
            **{
                f"RSNA_ASNR_MICCAI_BraTS2021_TrainingData/BraTS2021_00000/BraTS2021_00000_{s}.nii.gz": {
                    "split": "train",
                    "group": 0,
                    "mask": "RSNA_ASNR_MICCAI_BraTS2021_TrainingData/BraTS2021_00000/BraTS2021_00000_seg.nii.gz",
                }
                for s in ("flair", "t1ce")
            },
            "RSNA_ASNR_MICCAI_BraTS2021_ValidationData/BraTS2021_00001/BraTS2021_00001_t2.nii.gz": {
                "split": "val",
                "group": 1,
            },
        },
    ),
    "duke-breast-cancer-mri": Case(
        "",
        {
            "Duke-Breast-Cancer-MRI/Breast_MRI_001/01-01-1990-NA-MRI-97538/26.000000-ax t1": {"group": 1},
            # one folder with two series: each is a record
            "Duke-Breast-Cancer-MRI/Breast_MRI_002/1.2.840.1/mixed#series=0": {"group": 2},
            "Duke-Breast-Cancer-MRI/Breast_MRI_002/1.2.840.1/mixed#series=1": {"group": 2},
        },
        {
            **series("Duke-Breast-Cancer-MRI/Breast_MRI_001/01-01-1990-NA-MRI-97538/26.000000-ax t1", 5, "MR", "4.1"),
            **series("Duke-Breast-Cancer-MRI/Breast_MRI_002/1.2.840.1/mixed", 5, "MR", "4.2", "a-{:03d}.dcm"),
            **series("Duke-Breast-Cancer-MRI/Breast_MRI_002/1.2.840.1/mixed", 6, "MR", "4.3", "b-{:03d}.dcm"),
        },
    ),
    "acrin-6698": Case(
        "",
        {
            f"{_TCIA}/ACRIN-6698/ACRIN-6698-102212/1.3.6.1.5/1.3.6.1.6": {
                "group": 1,
                "mask": f"{_TCIA}/ACRIN-6698/ACRIN-6698-102212/1.3.6.1.5/1.3.6.1.7/1-1.dcm",
            }
        },
        {
            **series(f"{_TCIA}/ACRIN-6698/ACRIN-6698-102212/1.3.6.1.5/1.3.6.1.6", 3, "MR", "5.1"),
            f"{_TCIA}/ACRIN-6698/ACRIN-6698-102212/1.3.6.1.5/1.3.6.1.7/1-1.dcm": dicom("SEG", "5.2", refers="5.1"),
        },
    ),
    "colorectal-liver-metastases": Case(
        "",
        {
            "Colorectal-Liver-Metastases/CRLM-CT-1001/s/101.000000-NA-71548": {
                "group": 1001,
                "mask": "Colorectal-Liver-Metastases/CRLM-CT-1001/s/100.000000-Segmentation-1/1-1.dcm",
            }
        },
        {
            **series("Colorectal-Liver-Metastases/CRLM-CT-1001/s/101.000000-NA-71548", 5, "CT", "6.1"),
            "Colorectal-Liver-Metastases/CRLM-CT-1001/s/100.000000-Segmentation-1/1-1.dcm": dicom(
                "SEG", "6.2", refers="6.1"
            ),
        },
    ),
    "micro-ultrasound-prostate": Case(
        f"""
        {_MICRO}/train/micro_ultrasound_scans/microUS_train_01.nii.gz
        {_MICRO}/train/expert_annotations/expert_annotation_train_01.nii.gz
        {_MICRO}/train/non_expert_annotations/nonexpert_annotation_train_01.nii.gz
        {_MICRO}/test/micro_ultrasound_scans/microUS_test_01.nii.gz
        {_MICRO}/test/expert_annotations/expert_annotation_test_01.nii.gz
        {_MICRO}/test/clinician_annotations/clinician_annotation_test_01.nii.gz
        """,
        {
            f"{_MICRO}/train/micro_ultrasound_scans/microUS_train_01.nii.gz": {
                "split": "train",
                "group": 1,
                "mask": f"{_MICRO}/train/expert_annotations/expert_annotation_train_01.nii.gz",
                "mask_student": f"{_MICRO}/train/non_expert_annotations/nonexpert_annotation_train_01.nii.gz",
            },
            f"{_MICRO}/test/micro_ultrasound_scans/microUS_test_01.nii.gz": {
                "split": "test",
                "group": 2,
                "mask": f"{_MICRO}/test/expert_annotations/expert_annotation_test_01.nii.gz",
            },
        },
    ),
    "copd-inhouse": Case(
        "images/one.nii.gz\nimages/two.nii.gz",
        {"images/one.nii.gz": {"label": "copd"}, "images/two.nii.gz": {"label": "healthy"}},
        {"labels.csv": "file;label\none.nii.gz;copd\ntwo.nii.gz;healthy\n"},
    ),
    "pneumonia-ct-inhouse": Case("one.mhd", {"one.mhd": {"label": "1"}}, {"labels.csv": "label,file\n1,one.mhd\n"}),
    "luna16": Case(
        """
        subset0/subset0/1.3.6.1.100.mhd
        subset9/1.3.6.1.200.mhd
        seg-lungs-LUNA16/1.3.6.1.100.mhd
        """,
        {
            "subset0/subset0/1.3.6.1.100.mhd": {
                "fold": 0,
                "group": 1,
                "mask": "seg-lungs-LUNA16/1.3.6.1.100.mhd",
                # LPS in the table, RAS in the record: x and y change sign
                "boxes": [
                    {"label": "nodule", "coordinates": [128.5, 175.25, -298.5, 5.5]},
                    {"label": "nodule", "coordinates": [-10.0, 20.0, 30.0, 12.0]},
                    # left out of the official score
                    {"label": None, "coordinates": [1.0, 2.0, 3.0, -1.0]},
                ],
            },
            "subset9/1.3.6.1.200.mhd": {"fold": 9, "group": 2, "boxes": []},
        },
        {
            "CSVFILES/annotations.csv": "seriesuid,coordX,coordY,coordZ,diameter_mm\n"
            "1.3.6.1.100,-128.5,-175.25,-298.5,5.5\n1.3.6.1.100,10,-20,30,12\n",
            # The evaluation script carries the same findings once more
            "evaluationScript/annotations/annotations.csv": "seriesuid,coordX,coordY,coordZ,diameter_mm\n"
            "1.3.6.1.100,10,-20,30,12\n",
            "evaluationScript/annotations/annotations_excluded.csv": "seriesuid,coordX,coordY,coordZ,diameter_mm\n"
            "1.3.6.1.100,-1,-2,3,-1\n1.3.6.1.999,0,0,0,4\n",
        },
    ),
    "hipas-pulmonary-av": Case(
        "ct_scan/001.npz\nannotation/artery/001.npz\nannotation/vein/001.npz",
        {
            "ct_scan/001.npz#data": {
                "group": 1,
                "mask": "annotation/artery/001.npz#data",
                "mask_vein": "annotation/vein/001.npz#data",
            }
        },
    ),
    "abdomenct-1k": Case(
        """
        AbdomenCT-1K-ImagePart1/AbdomenCT-1K-ImagePart1/Case_00001_0000.nii.gz
        AbdomenCT-1K-ImagePart3/Case_00801_0000.nii.gz
        Mask/Case_00001.nii.gz
        """,
        {
            "AbdomenCT-1K-ImagePart1/AbdomenCT-1K-ImagePart1/Case_00001_0000.nii.gz": {
                "group": 1,
                "mask": "Mask/Case_00001.nii.gz",
            },
            "AbdomenCT-1K-ImagePart3/Case_00801_0000.nii.gz": {"group": 801},
        },
    ),
    "amos22": Case(
        """
        amos22/imagesTr/amos_0410.nii.gz
        amos22/labelsTr/amos_0410.nii.gz
        amos22/imagesVa/amos_0507.nii.gz
        amos22/labelsVa/amos_0507.nii.gz
        amos22/imagesTs/amos_0002.nii.gz
        amos22/dataset.json
        """,
        {
            "amos22/imagesTr/amos_0410.nii.gz": {
                "split": "train",
                "group": 410,
                "modality": "CT",
                "mask": "amos22/labelsTr/amos_0410.nii.gz",
            },
            "amos22/imagesVa/amos_0507.nii.gz": {
                "split": "val",
                "group": 507,
                "modality": "MRI",
                "mask": "amos22/labelsVa/amos_0507.nii.gz",
            },
            "amos22/imagesTs/amos_0002.nii.gz": {"split": "test", "group": 2, "modality": "CT"},
        },
    ),
    "acdc": Case(
        """
        ACDC/database/training/patient001/patient001_frame01.nii.gz
        ACDC/database/training/patient001/patient001_frame01_gt.nii.gz
        ACDC/database/training/patient001/patient001_frame12.nii.gz
        ACDC/database/training/patient001/patient001_frame12_gt.nii.gz
        ACDC/database/training/patient001/patient001_4d.nii.gz
        ACDC/database/testing/patient101/patient101_frame01.nii
        ACDC/database/testing/patient101/patient101_frame01_gt.nii
        """,
        {
            **{
                f"ACDC/database/training/patient001/patient001_frame{frame}.nii.gz": {
                    "split": "train",
                    "group": 1,
                    "mask": f"ACDC/database/training/patient001/patient001_frame{frame}_gt.nii.gz",
                }
                for frame in ("01", "12")
            },
            "ACDC/database/testing/patient101/patient101_frame01.nii": {
                "split": "test",
                "group": 101,
                "mask": "ACDC/database/testing/patient101/patient101_frame01_gt.nii",
            },
        },
    ),
}

# MedMNIST's volumes differ in their class names alone.
for _name, _first, _last in (
    ("organmnist3d", "liver", "pancreas"),
    ("nodulemnist3d", "benign", "malignant"),
    ("adrenalmnist3d", "normal", "hyperplasia"),
    ("fracturemnist3d", "buckle rib fracture", "displaced rib fracture"),
    ("vesselmnist3d", "vessel", "aneurysm"),
    ("synapsemnist3d", "inhibitory synapse", "excitatory synapse"),
):
    _top = {"organmnist3d": 10, "fracturemnist3d": 2}.get(_name, 1)
    CASES[_name] = Case(
        "",
        {
            f"{_name}.npz#train_images[0]": {"split": "train", "label": _first},
            f"{_name}.npz#val_images[0]": {"split": "val", "label": _last},
            f"{_name}.npz#test_images[0]": {"split": "test", "label": _first},
        },
        {f"{_name}.npz": medmnist(28, 3, (1, 1, 1), [[0], [_top], [0]])},
    )
